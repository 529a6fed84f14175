//! What a registry's 401 asks for (RFC 9110 §11.6, distribution's token
//! authentication).

/// One challenge that can be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// Challenges in one header, and parameters in one challenge.
const MAX_ITEMS: usize = 32;

/// The challenges in `WWW-Authenticate` header values, in order; unknown schemes
/// are left out, and so is what is no challenge.
pub(crate) fn challenges<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let mut found = Vec::new();
    for value in values {
        let mut scanner = Scanner { rest: value };
        let mut scheme: Option<String> = None;
        let mut parameters: Vec<(String, String)> = Vec::new();
        while found.len() < MAX_ITEMS && scanner.next_item() {
            let word = scanner.take(is_token).to_ascii_lowercase();
            if word.is_empty() {
                scanner.skip_item();
                continue;
            }
            scanner.space();
            if scanner.eat('=') {
                // A list of parameters goes on until the next scheme.
                scanner.space();
                let value = scanner.value();
                if parameters.len() < MAX_ITEMS {
                    parameters.push((word, value));
                }
                continue;
            }
            found.extend(challenge(scheme.replace(word), &parameters));
            parameters.clear();
            scanner.skip_token68();
        }
        found.extend(challenge(scheme, &parameters));
    }
    found
}

/// RFC 9110 §5.6 and §11.2, as far as challenges need it.
struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    /// Goes to the next item of a list; `false` at the end.
    fn next_item(&mut self) -> bool {
        self.rest = self.rest.trim_start_matches([',', ' ', '\t']);
        !self.rest.is_empty()
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start_matches([' ', '\t']);
    }

    fn take(&mut self, wanted: impl Fn(char) -> bool) -> &str {
        let end = self.rest.find(|character| !wanted(character)).unwrap_or(self.rest.len());
        let (taken, rest) = self.rest.split_at(end);
        self.rest = rest;
        taken
    }

    fn eat(&mut self, character: char) -> bool {
        match self.rest.strip_prefix(character) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// A token, or a quoted string; one without an end ends with the header.
    fn value(&mut self) -> String {
        if !self.eat('"') {
            return self.take(|character| !matches!(character, ',' | ' ' | '\t')).to_owned();
        }
        let mut text = String::new();
        let mut characters = self.rest.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => text.extend(characters.next()),
                character => text.push(character),
            }
        }
        self.rest = characters.as_str();
        text
    }

    /// What some schemes have instead of parameters.
    fn skip_token68(&mut self) {
        let word = |character: char| {
            character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_' | '~' | '+' | '/')
        };
        let after = self.rest.trim_start_matches(word).trim_start_matches('=');
        let after = after.trim_start_matches([' ', '\t']);
        if after.is_empty() || after.starts_with(',') {
            self.rest = after;
        }
    }

    fn skip_item(&mut self) {
        let end = self.rest.find(',').unwrap_or(self.rest.len());
        self.rest = &self.rest[end..];
    }
}

fn is_token(character: char) -> bool {
    character.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(character)
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

    fn bearer_of(text: &str) -> Challenge {
        challenges([text]).remove(0)
    }

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
        // As several headers, with odd spaces, with token68.
        assert_eq!(
            challenges(["Negotiate YII=", &text.replace("=\"", " = \""), "NTLM abc/def==, Basic"]),
            [bearer_of(text), Challenge::Basic]
        );
        for (text, realm) in [
            ("bEaReR realm=https://a/b", "https://a/b"),
            (r#"Bearer realm="https://a/b"#, "https://a/b"),
            (r#"Bearer realm="https://a/b", realm="https://c""#, "https://a/b"),
            (r#", ,Bearer error="invalid_token" , realm="https://a/b","#, "https://a/b"),
            (r#"Bearer realm="https://a/b" service="x""#, "https://a/b"),
            (r#"Digest realm="x, Basic", nonce="y", Bearer realm="https://a/b""#, "https://a/b"),
        ] {
            let found = challenges([text]);
            assert!(
                matches!(&found[..], [Challenge::Bearer { realm: found, .. }] if found == realm),
                "{text}: {found:?}"
            );
        }
        assert_eq!(challenges(["Bearer service=x", "", ",,"]), []);
    }

    proptest! {
        #[test]
        fn challenges_never_panic(text in "\\PC{0,60}|([Bearsic =,\"\\\\]|Bearer |realm=){0,40}") {
            let _ = challenges([text.as_str()]);
        }
    }
}
