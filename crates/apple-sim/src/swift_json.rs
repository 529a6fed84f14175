//! JSON as Foundation's `JSONEncoder` writes it: sorted keys, `/` escaped, and the
//! pretty form with its spaces around colons and its empty lines in what is empty
//! (`JSONWriter.swift` of apple/swift-foundation).

use serde_json::Value;

/// One line, `outputFormatting = [.sortedKeys]`.
#[must_use]
pub fn compact(value: &Value) -> String {
    let mut text = String::new();
    write(value, None, &mut text);
    text
}

/// `outputFormatting = [.prettyPrinted, .sortedKeys]`.
#[must_use]
pub fn pretty(value: &Value) -> String {
    let mut text = String::new();
    write(value, Some(0), &mut text);
    text
}

fn write(value: &Value, depth: Option<usize>, text: &mut String) {
    match value {
        Value::Array(items) => {
            list('[', ']', items.iter(), depth, text, write);
        }
        Value::Object(fields) => {
            // By bytes, whatever order the map keeps.
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            list('{', '}', sorted.into_iter(), depth, text, |(key, item), depth, text| {
                string(key, text);
                text.push_str(if depth.is_some() { " : " } else { ":" });
                write(item, depth, text);
            });
        }
        Value::String(content) => string(content, text),
        Value::Number(number) => match number.as_f64() {
            // A Double without a fraction has no point.
            Some(float) if number.is_f64() && float.fract() == 0.0 => text.push_str(&format!("{float:.0}")),
            Some(_) | None => text.push_str(&number.to_string()),
        },
        Value::Null | Value::Bool(_) => text.push_str(&value.to_string()),
    }
}

fn list<T>(
    open: char,
    close: char,
    items: impl Iterator<Item = T>,
    depth: Option<usize>,
    text: &mut String,
    mut each: impl FnMut(T, Option<usize>, &mut String),
) {
    text.push(open);
    let inner = depth.map(|depth| depth + 1);
    if depth.is_some() {
        text.push('\n');
    }
    for (index, item) in items.enumerate() {
        if index > 0 {
            text.push_str(if depth.is_some() { ",\n" } else { "," });
        }
        if let Some(inner) = inner {
            text.push_str(&"  ".repeat(inner));
        }
        each(item, inner, text);
    }
    if let Some(depth) = depth {
        text.push('\n');
        text.push_str(&"  ".repeat(depth));
    }
    text.push(close);
}

fn string(content: &str, text: &mut String) {
    text.push('"');
    for character in content.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '/' => text.push_str("\\/"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\0'..='\u{1f}' => text.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => text.push(character),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn compact_is_sorted_and_escapes_slashes() {
        let value = json!({ "b": [1, 2.5, 3.0], "a/c": "x/y\"\n\u{1}", "B": null, "d": {} });
        let expected = "{\"B\":null,\"a\\/c\":\"x\\/y\\\"\\n\\u0001\",\"b\":[1,2.5,3],\"d\":{}}";
        assert_eq!(compact(&value), expected);
    }

    #[test]
    fn pretty_is_as_foundation_writes_it() {
        let value = json!([{ "list": [], "map": {}, "n": [1, "a"] }]);
        let expected = "[\n  {\n    \"list\" : [\n\n    ],\n    \"map\" : {\n\n    },\n    \"n\" : [\n      1,\n      \"a\"\n    ]\n  }\n]";
        assert_eq!(pretty(&value), expected);
        assert_eq!(pretty(&json!([])), "[\n\n]");
    }
}
