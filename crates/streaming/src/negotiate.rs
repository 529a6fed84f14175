//! What client and server agree on: which upgrade, and which protocol in it.

use hyper::HeaderMap;
use hyper::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_PROTOCOL, UPGRADE};

/// Where SPDY clients name their protocols.
pub(crate) const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Where they are told what would have been taken.
pub(crate) const ACCEPTED_PROTOCOLS: HeaderName =
    HeaderName::from_static("x-accepted-stream-protocol-versions");

/// The protocols of exec and attach over SPDY.
pub(crate) const COMMAND_OVER_SPDY: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
/// The protocol of port-forward over SPDY.
pub(crate) const FORWARD_OVER_SPDY: &[&str] = &["portforward.k8s.io"];
/// The protocols of exec and attach over WebSocket.
pub(crate) const COMMAND_OVER_WEBSOCKET: &[&str] = &[
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
];
/// The protocols of port-forward over WebSocket.
pub(crate) const FORWARD_OVER_WEBSOCKET: &[&str] = &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"];
/// SPDY inside WebSocket.
pub(crate) const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

/// What a request wants to be upgraded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Upgrade {
    Spdy,
    WebSocket,
}

/// The upgrade that a request's headers ask for.
pub(crate) fn upgrade(headers: &HeaderMap) -> Option<Upgrade> {
    if !values(headers, &CONNECTION).any(|value| value.eq_ignore_ascii_case("upgrade")) {
        return None;
    }
    values(headers, &UPGRADE).find_map(|value| {
        if value.eq_ignore_ascii_case("SPDY/3.1") {
            Some(Upgrade::Spdy)
        } else if value.eq_ignore_ascii_case("websocket") {
            Some(Upgrade::WebSocket)
        } else {
            None
        }
    })
}

/// Which protocol is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first of the client's that the server knows.
    Agreed(&'static str),
    /// The client named none.
    Unnamed,
    /// The client knows none that the server knows.
    Nothing,
}

/// Chooses a protocol for SPDY.
pub(crate) fn spdy_protocol(headers: &HeaderMap, known: &[&'static str]) -> Choice {
    choose(values(headers, &STREAM_PROTOCOL), known)
}

/// Chooses a protocol for WebSocket.
pub(crate) fn websocket_protocol(headers: &HeaderMap, known: &[&'static str]) -> Choice {
    choose(values(headers, &SEC_WEBSOCKET_PROTOCOL), known)
}

fn choose<'headers>(wanted: impl Iterator<Item = &'headers str>, known: &[&'static str]) -> Choice {
    let mut choice = Choice::Unnamed;
    for wanted in wanted {
        if let Some(known) = known.iter().find(|known| **known == wanted) {
            return Choice::Agreed(known);
        }
        choice = Choice::Nothing;
    }
    choice
}

fn values<'headers>(
    headers: &'headers HeaderMap,
    name: &HeaderName,
) -> impl Iterator<Item = &'headers str> + use<'headers> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|value| !value.is_empty())
}

/// Ports in a query: `port=80&port=443`, or several in one, separated by commas.
pub(crate) fn query_ports(query: &str) -> Option<Vec<u16>> {
    query
        .split('&')
        .filter_map(|pair| pair.strip_prefix("port="))
        .flat_map(|value| value.split([',']))
        .flat_map(|value| value.split("%2C"))
        .map(parse_port)
        .collect()
}

/// A port that exists.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    text.parse().ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn headers(fields: &[(HeaderName, &'static str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn upgrades_are_found_in_lists_and_in_any_case() {
        let cases = [
            ("Upgrade", "SPDY/3.1", Some(Upgrade::Spdy)),
            ("keep-alive, upgrade", "spdy/3.1", Some(Upgrade::Spdy)),
            ("Upgrade", "WebSocket", Some(Upgrade::WebSocket)),
            ("keep-alive", "SPDY/3.1", None),
            ("Upgrade", "h2c", None),
        ];
        for (connection, wanted, expected) in cases {
            let headers = headers(&[(CONNECTION, connection), (UPGRADE, wanted)]);
            assert_eq!(upgrade(&headers), expected, "{connection} {wanted}");
        }
    }

    #[test]
    fn the_clients_order_decides() {
        let mut fields = HeaderMap::new();
        assert_eq!(spdy_protocol(&fields, COMMAND_OVER_SPDY), Choice::Unnamed);
        fields.append(STREAM_PROTOCOL, HeaderValue::from_static("v9.channel.k8s.io"));
        assert_eq!(spdy_protocol(&fields, COMMAND_OVER_SPDY), Choice::Nothing);
        fields.append(STREAM_PROTOCOL, HeaderValue::from_static("v2.channel.k8s.io, v4.channel.k8s.io"));
        assert_eq!(spdy_protocol(&fields, COMMAND_OVER_SPDY), Choice::Agreed("v2.channel.k8s.io"));
    }

    #[test]
    fn ports_are_read_from_queries() {
        assert_eq!(query_ports("port=80&x=1&port=443,8080"), Some(vec![80, 443, 8080]));
        assert_eq!(query_ports("port=80%2C81"), Some(vec![80, 81]));
        assert_eq!(query_ports(""), Some(vec![]));
        assert_eq!(query_ports("port=0"), None);
        assert_eq!(query_ports("port=65536"), None);
        assert_eq!(query_ports("port=80,"), None);
    }
}
