//! `hosts.toml`: where a registry's content comes from (containerd's
//! `docs/hosts.md`).
//!
//! Everything here is about text; nothing is opened. What containerd ignores is
//! a warning, what it cannot use is refused: a file that its author got wrong
//! must not send a pull somewhere else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Hosts in one file.
const MAX_HOSTS: usize = 64;
/// Certificate files, key pairs or headers of one host.
const MAX_ITEMS: usize = 64;

/// A file's content.
#[derive(Debug, Default)]
pub(crate) struct HostsFile {
    /// The hosts before the server, in the order in which they are tried.
    pub(crate) hosts: Vec<Entry>,
    /// The last one to try. Without a URL it is the registry itself.
    pub(crate) server: Entry,
    /// What was not understood and changes nothing.
    pub(crate) warnings: Vec<String>,
}

/// How one host is spoken to.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Where its API begins, with a `/` at the end.
    pub(crate) base: Option<Url>,
    /// Whether it may serve content by digest.
    pub(crate) pull: bool,
    /// Whether it may say what a tag means.
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    /// The longest wait for a connection.
    pub(crate) dial_timeout: Option<Duration>,
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            base: None,
            pull: true,
            resolve: true,
            tls: Tls::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// Certificates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tls {
    /// PEM files of roots that are trusted besides the usual ones.
    pub(crate) authorities: Vec<PathBuf>,
    /// PEM files of client certificates and their keys; both can be one file.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    /// Whether any certificate will do.
    pub(crate) skip_verify: Option<bool>,
}

/// Why a file is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// Counted from 1.
    pub(crate) line: Option<usize>,
    pub(crate) reason: String,
}

/// Understands a file's text. Paths in it are relative to `directory`.
pub(crate) fn parse(text: &str, directory: &Path) -> Result<HostsFile, Fault> {
    let document = DeTable::parse(text).map_err(|error| Fault {
        line: error.span().map(|span| line_of(text, span.start)),
        reason: error.message().to_owned(),
    })?;
    let mut reader = Reader { text, directory, warnings: Vec::new() };
    let mut settings = Settings::default();
    let mut base = None;
    let mut hosts: Vec<(usize, Entry)> = Vec::new();
    for (key, value) in document.get_ref() {
        match key.get_ref().as_ref() {
            "server" => base = Some((reader.string("server", value)?, value)),
            "host" => {
                let table = reader.table("host", value)?;
                if table.len() > MAX_HOSTS {
                    return Err(reader.fault(value, format!("`host` names more than {MAX_HOSTS} hosts")));
                }
                for (url, value) in table {
                    hosts.push((url.span().start, reader.host(url, value)?));
                }
            }
            name => reader.setting("", name, key, value, &mut settings)?,
        }
    }
    // The order in the file is the order in which they are tried.
    hosts.sort_by_key(|(position, _)| *position);
    let base = match base {
        Some((url, value)) if !url.is_empty() => Some(
            base_url(url, settings.override_path)
                .map_err(|reason| reader.fault(value, format!("`server` {url:?} {reason}")))?,
        ),
        Some(_) | None => None,
    };
    let server = settings.entry(base);
    let hosts = hosts.into_iter().map(|(_, host)| host).collect();
    Ok(HostsFile { hosts, server, warnings: reader.warnings })
}

/// A host's API: `/v2` is added unless it is there or `override_path` says that
/// the path is as it should be.
pub(crate) fn base_url(text: &str, override_path: bool) -> Result<Url, &'static str> {
    // As containerd does: what has no scheme is https.
    let whole = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    let mut url = Url::parse(&whole).map_err(|_| "is not a URL; write for example https://host:5000")?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err("is neither http:// nor https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds credentials; put them into a docker configuration file");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has more than a host and a path");
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with("/v2") {
        path.push_str("/v2");
    }
    path.push('/');
    url.set_path(&path);
    Ok(url)
}

/// The keys that a host and the file itself can have.
#[derive(Default)]
struct Settings {
    capabilities: Option<(bool, bool)>,
    tls: Tls,
    headers: HeaderMap,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

impl Settings {
    fn entry(self, base: Option<Url>) -> Entry {
        let (pull, resolve) = self.capabilities.unwrap_or((true, true));
        Entry { base, pull, resolve, tls: self.tls, headers: self.headers, dial_timeout: self.dial_timeout }
    }
}

struct Reader<'a> {
    text: &'a str,
    directory: &'a Path,
    warnings: Vec<String>,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn fault<T>(&self, at: &Spanned<T>, reason: String) -> Fault {
        Fault { line: Some(line_of(self.text, at.span().start)), reason }
    }

    fn host(&mut self, url: &Spanned<std::borrow::Cow<'_, str>>, value: &Value<'_>) -> Result<Entry, Fault> {
        let name = url.get_ref().as_ref();
        let mut settings = Settings::default();
        for (key, value) in self.table(name, value)? {
            self.setting(name, key.get_ref(), key, value, &mut settings)?;
        }
        let base = base_url(name, settings.override_path)
            .map_err(|reason| self.fault(url, format!("host {name:?} {reason}")))?;
        Ok(settings.entry(Some(base)))
    }

    fn setting(
        &mut self,
        host: &str,
        name: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Value<'_>,
        settings: &mut Settings,
    ) -> Result<(), Fault> {
        match name {
            "capabilities" => settings.capabilities = self.capabilities(value)?,
            "ca" => settings.tls.authorities = self.paths("ca", value)?,
            "client" => settings.tls.client = self.pairs(value)?,
            "skip_verify" => settings.tls.skip_verify = Some(self.boolean("skip_verify", value)?),
            "override_path" => settings.override_path = self.boolean("override_path", value)?,
            "header" => settings.headers = self.headers(value)?,
            "dial_timeout" => {
                let text = self.string("dial_timeout", value)?;
                settings.dial_timeout = duration(text).ok_or_else(|| {
                    self.fault(
                        value,
                        format!("`dial_timeout` {text:?} is no duration such as \"1s\" or \"500ms\""),
                    )
                })?;
            }
            _ => {
                let line = line_of(self.text, key.span().start);
                let place = if host.is_empty() { String::new() } else { format!(" of host {host:?}") };
                self.warnings.push(format!("line {line}: unknown key `{}`{place}", name.escape_debug()));
            }
        }
        Ok(())
    }

    fn capabilities(&self, value: &Value<'_>) -> Result<Option<(bool, bool)>, Fault> {
        let (mut pull, mut resolve) = (false, false);
        let names = self.strings("capabilities", value)?;
        for (name, value) in &names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => pull = true,
                "resolve" => resolve = true,
                // Nothing is pushed and no referrers are looked for.
                "push" | "referrers" => {}
                _ => {
                    let reason = format!(
                        "unknown capability {name:?}; there are \"pull\", \"resolve\", \"push\" and \"referrers\""
                    );
                    return Err(self.fault(*value, reason));
                }
            }
        }
        // An empty list means all, as containerd has it.
        Ok((!names.is_empty()).then_some((pull, resolve)))
    }

    /// One path or several.
    fn paths(&self, name: &str, value: &Value<'_>) -> Result<Vec<PathBuf>, Fault> {
        if let DeValue::String(path) = value.get_ref() {
            return Ok(vec![self.directory.join(path.as_ref())]);
        }
        let paths = self.strings(name, value)?;
        Ok(paths.into_iter().map(|(path, _)| self.directory.join(path)).collect())
    }

    /// One file, several, or pairs of certificate and key.
    fn pairs(&self, value: &Value<'_>) -> Result<Vec<(PathBuf, PathBuf)>, Fault> {
        let one = |path: &str| (self.directory.join(path), self.directory.join(path));
        let wrong = |at: &Value<'_>| {
            self.fault(
                at,
                "`client` is neither a path, nor a list of paths, nor a list of [certificate, key] pairs"
                    .to_owned(),
            )
        };
        match value.get_ref() {
            DeValue::String(path) => Ok(vec![one(path)]),
            DeValue::Array(items) => {
                self.bounded("client", items.len(), value)?;
                let mut pairs = Vec::new();
                for item in items.iter() {
                    pairs.push(match item.get_ref() {
                        DeValue::String(path) => one(path),
                        DeValue::Array(_) => match self.strings("client", item)?.as_slice() {
                            // An empty key is in the certificate's file.
                            [(certificate, _), ("", _)] => one(certificate),
                            [(certificate, _), (key, _)] => {
                                (self.directory.join(certificate), self.directory.join(key))
                            }
                            _ => return Err(wrong(item)),
                        },
                        _ => return Err(wrong(item)),
                    });
                }
                Ok(pairs)
            }
            _ => Err(wrong(value)),
        }
    }

    /// Values are secret often enough that they are in no message.
    fn headers(&self, value: &Value<'_>) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        let table = self.table("header", value)?;
        self.bounded("header", table.len(), value)?;
        for (name, value) in table {
            let text = name.get_ref().as_ref();
            let parsed = HeaderName::from_bytes(text.as_bytes())
                .map_err(|_| self.fault(name, format!("{text:?} cannot be a header's name")))?;
            let values = match value.get_ref() {
                DeValue::String(one) => vec![one.as_ref()],
                DeValue::Array(_) => self.strings(text, value)?.into_iter().map(|(text, _)| text).collect(),
                _ => {
                    let reason = format!("header {text:?} is neither a string nor a list of strings");
                    return Err(self.fault(value, reason));
                }
            };
            for one in values {
                let mut one = HeaderValue::from_str(one).map_err(|_| {
                    self.fault(value, format!("header {text:?} has characters that no header can have"))
                })?;
                one.set_sensitive(true);
                headers.append(parsed.clone(), one);
            }
        }
        Ok(headers)
    }

    fn table<'v, 't>(&self, name: &str, value: &'v Value<'t>) -> Result<&'v DeTable<'t>, Fault> {
        value
            .get_ref()
            .as_table()
            .ok_or_else(|| self.fault(value, format!("`{}` is not a table", name.escape_debug())))
    }

    fn string<'v>(&self, name: &str, value: &'v Value<'_>) -> Result<&'v str, Fault> {
        value.get_ref().as_str().ok_or_else(|| self.fault(value, format!("`{name}` is not a string")))
    }

    fn boolean(&self, name: &str, value: &Value<'_>) -> Result<bool, Fault> {
        value
            .get_ref()
            .as_bool()
            .ok_or_else(|| self.fault(value, format!("`{name}` is neither true nor false (without quotes)")))
    }

    fn strings<'v, 't>(
        &self,
        name: &str,
        value: &'v Value<'t>,
    ) -> Result<Vec<(&'v str, &'v Value<'t>)>, Fault> {
        let wrong =
            |at: &Value<'_>| self.fault(at, format!("`{}` is not a list of strings", name.escape_debug()));
        let items = value.get_ref().as_array().ok_or_else(|| wrong(value))?;
        self.bounded(name, items.len(), value)?;
        items.iter().map(|item| Ok((item.get_ref().as_str().ok_or_else(|| wrong(item))?, item))).collect()
    }

    fn bounded(&self, name: &str, count: usize, value: &Value<'_>) -> Result<(), Fault> {
        if count > MAX_ITEMS {
            return Err(self.fault(value, format!("`{name}` has more than {MAX_ITEMS} entries")));
        }
        Ok(())
    }
}

fn line_of(text: &str, position: usize) -> usize {
    text.as_bytes().iter().take(position).filter(|byte| **byte == b'\n').count() + 1
}

/// A duration as Go writes it: `1m30s`, `500ms`, `1.5h`. Zero means no bound of
/// its own.
fn duration(text: &str) -> Option<Option<Duration>> {
    const LONGEST: f64 = 3600.0;
    let mut rest = text;
    let mut seconds = 0.0;
    if rest == "0" {
        return Some(None);
    }
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|character: char| !character.is_ascii_digit() && character != '.')?;
        let number: f64 = rest.get(..end)?.parse().ok()?;
        rest = rest.get(end..)?;
        let end =
            rest.find(|character: char| character.is_ascii_digit() || character == '.').unwrap_or(rest.len());
        let unit = match rest.get(..end)? {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        rest = rest.get(end..)?;
        seconds += number * unit;
    }
    if seconds <= 0.0 { Some(None) } else { Some(Some(Duration::from_secs_f64(seconds.min(LONGEST)))) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<HostsFile, Fault> {
        parse(text, Path::new("/etc/kina/certs.d/example"))
    }

    #[test]
    fn everything_is_read_in_order() {
        let file = read(
            r#"
server = "https://registry.example"
ca = "/etc/root.pem"
[host."https://z.example"]
  capabilities = ["pull"]
  ca = ["a.pem", "/b.pem"]
  client = [["c.cert", "c.key"], ["d.pem", ""], "e.pem"]
  skip_verify = true
  dial_timeout = "1m1.5s"
  [host."https://z.example".header]
    x-one = "1"
    X-Two = ["2", "3"]
[host."http://a.example:5000/us/"]
  capabilities = ["Pull", "resolve", "push"]
  client = "f.pem"
[host."m.example/v2/deep"]
  override_path = true
[host."b.example/v2"]
"#,
        )
        .unwrap();
        let bases: Vec<_> = file.hosts.iter().map(|host| host.base.as_ref().unwrap().as_str()).collect();
        assert_eq!(
            bases,
            [
                "https://z.example/v2/",
                "http://a.example:5000/us/v2/",
                "https://m.example/v2/deep/",
                "https://b.example/v2/"
            ]
        );
        let path = |name: &str| Path::new("/etc/kina/certs.d/example").join(name);
        let first = &file.hosts[0];
        assert!(first.pull && !first.resolve);
        assert_eq!(first.tls.authorities, [path("a.pem"), path("/b.pem")]);
        let pairs = [("c.cert", "c.key"), ("d.pem", "d.pem"), ("e.pem", "e.pem")];
        assert_eq!(first.tls.client, pairs.map(|(certificate, key)| (path(certificate), path(key))));
        assert_eq!(first.tls.skip_verify, Some(true));
        assert_eq!(first.dial_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(first.headers["x-one"], "1");
        assert_eq!(first.headers.get_all("x-two").iter().count(), 2);
        assert!(!format!("{first:?}").contains("\"1\""));
        assert!(file.hosts[1].pull && file.hosts[1].resolve);
        assert_eq!(file.server.base.unwrap().as_str(), "https://registry.example/v2/");
        assert_eq!(file.server.tls.authorities, [path("/etc/root.pem")]);
        assert_eq!(file.warnings, [""; 0]);
    }

    #[test]
    fn a_file_without_hosts_and_unknown_keys() {
        let file = read("").unwrap();
        assert!(file.hosts.is_empty() && file.server.base.is_none());
        let file = read("skip_verify = true\n[host.\"a\"]\ncapabilities = []\nca_file = 1\n").unwrap();
        assert!(file.hosts[0].pull && file.hosts[0].resolve);
        assert_eq!(file.server.tls.skip_verify, Some(true));
        assert_eq!(file.warnings, ["line 4: unknown key `ca_file` of host \"a\""]);
    }

    #[test]
    fn mistakes_name_line_and_key() {
        for (text, line, reason) in [
            ("server = 3", 1, "`server` is not a string"),
            ("\nserver = \"ftp://x\"", 2, "neither http"),
            ("server = \"https://u:p@x\"", 1, "credentials"),
            ("server = \"https://x?y\"", 1, "more than a host"),
            ("server = \"https://\"", 1, "is not a URL"),
            ("host = 1", 1, "`host` is not a table"),
            ("[host]\n\"https://a\" = 1", 2, "is not a table"),
            ("[host.\"a b\"]", 1, "is not a URL"),
            ("[host.a]\ncapabilities = \"pull\"", 2, "not a list of strings"),
            ("[host.a]\ncapabilities = [\"pull\",\n\"fly\"]", 3, "unknown capability \"fly\""),
            ("[host.a]\nca = 1", 2, "`ca` is not a list of strings"),
            ("[host.a]\nclient = [[\"x\"]]", 2, "[certificate, key]"),
            ("[host.a]\nclient = [1]", 2, "[certificate, key]"),
            ("[host.a]\nskip_verify = \"true\"", 2, "without quotes"),
            ("[host.a]\ndial_timeout = \"soon\"", 2, "no duration"),
            ("[host.a]\ndial_timeout = 3", 2, "not a string"),
            ("[host.a.header]\nx = 1", 2, "neither a string"),
            ("[host.a.header]\nx = \"hush\\n\"", 2, "characters"),
            ("[host.a.header]\n\"x y\" = \"hush\"", 2, "header's name"),
            ("[host.a\n", 1, ""),
            ("[host.a]\n[host.a]\n", 2, ""),
        ] {
            let fault = read(text).unwrap_err();
            assert_eq!(fault.line, Some(line), "{text}: {fault:?}");
            assert!(fault.reason.contains(reason), "{text}: {fault:?}");
            assert!(!fault.reason.contains("hush"), "{text}: {fault:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("1s", Some(Some(1000))),
            ("1m30s", Some(Some(90_000))),
            ("500ms", Some(Some(500))),
            (".5s", Some(Some(500))),
            ("0", Some(None)),
            ("0s", Some(None)),
            ("900h", Some(Some(3_600_000))),
            ("", None),
            ("1", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
            ("1..2s", None),
        ] {
            let got = duration(text).map(|value| value.map(|value| value.as_millis()));
            assert_eq!(got, expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,80}|[\\[\\]a-z\".=:/\n {},1]{0,120}") {
            let _ = read(&text);
            let _ = duration(&text);
        }
    }
}
