//! What a registry's 401 asks for (RFC 9110 §11.6, distribution's token
//! authentication).

/// One challenge that can be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenges in `WWW-Authenticate` header values, in order; unknown schemes
/// are left out.
pub(crate) fn challenges<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in values {
        let mut scheme: Option<String> = None;
        let mut parameters: Vec<(String, String)> = Vec::new();
        for item in split_items(value) {
            // `Scheme`, `Scheme name=value` or `name=value`.
            let (first, rest) = item.split_once(char::is_whitespace).unwrap_or((item, ""));
            let parameter = if first.contains('=') {
                item
            } else {
                found.extend(challenge(scheme.take(), &parameters));
                scheme = Some(first.to_ascii_lowercase());
                parameters.clear();
                rest.trim()
            };
            if let Some((name, value)) = parameter.split_once('=') {
                parameters.push((name.trim().to_ascii_lowercase(), unquote(value.trim())));
            }
        }
        found.extend(challenge(scheme, &parameters));
    }
    found
}

/// Splits at commas outside of quotes.
fn split_items(value: &str) -> Vec<&str> {
    let mut items = Vec::new();
    let (mut start, mut quoted, mut escaped) = (0, false, false);
    for (position, byte) in value.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                items.push(&value[start..position]);
                start = position + 1;
            }
            _ => {}
        }
    }
    items.push(&value[start..]);
    items.into_iter().map(str::trim).filter(|item| !item.is_empty()).collect()
}

fn unquote(value: &str) -> String {
    let Some(inner) = value.strip_prefix('"') else { return value.to_owned() };
    let inner = inner.strip_suffix('"').unwrap_or(inner);
    let mut text = String::with_capacity(inner.len());
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        if character == '\\' {
            text.extend(characters.next());
        } else {
            text.push(character);
        }
    }
    text
}

fn challenge(scheme: Option<String>, parameters: &[(String, String)]) -> Option<Challenge> {
    let get = |name: &str| parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
    match scheme?.as_str() {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            Some(Challenge::Bearer { realm: get("realm")?, service: get("service"), scope: get("scope") })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn challenges_are_found() {
        let bearer = Challenge::Bearer {
            realm: "https://auth.example/token".into(),
            service: Some("a, \"b\"".into()),
            scope: Some("repository:x:pull,push".into()),
        };
        let text = r#"Bearer realm="https://auth.example/token",service="a, \"b\"" , scope="repository:x:pull,push""#;
        assert_eq!(challenges([text]), std::slice::from_ref(&bearer));
        assert_eq!(
            challenges([format!("Negotiate, Basic realm=\"x\", {text}").as_str()]),
            [Challenge::Basic, bearer]
        );
        assert_eq!(challenges(["basic"]), [Challenge::Basic]);
        assert_eq!(challenges(["Bearer service=x", "", ",,"]), []);
    }

    proptest! {
        #[test]
        fn challenges_never_panic(text in "\\PC{0,60}|[Bearsic =,\"\\\\]{0,60}") {
            let _ = challenges([text.as_str()]);
        }
    }
}
