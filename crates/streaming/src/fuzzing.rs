//! Entry points of the fuzz targets.

use bytes::Bytes;

use crate::negotiate::query_ports;
use crate::session::parse_sizes;
use crate::token::parse_path;
use crate::websocket::{Codec, Decoded};

/// A path and a query: what is taken is written as it was read.
pub fn url(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    if let Some((kind, token)) = parse_path(path) {
        assert_eq!(path, format!("/{}/{token}", kind.name()));
        assert!(token.bytes().all(|byte| byte.is_ascii_graphic() && !b"/.%?#".contains(&byte)));
    }
    if let Some(ports) = query_ports(query) {
        assert!(ports.len() <= query.len() && !ports.contains(&0));
    }
}

/// A message of a WebSocket, in every protocol: what is understood reads as the same when it is written.
pub fn message(input: &[u8]) {
    let message = Bytes::copy_from_slice(input);
    for protocol in ["v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let codec = Codec::of(protocol);
        for channels in [5, 64] {
            let Decoded::Data(channel, data) = codec.decode(&message, channels) else { continue };
            assert!(channel < channels);
            let again = codec.encode(channel, &data).into_data();
            assert_eq!(codec.decode(&again, channels), Decoded::Data(channel, data));
        }
    }
    assert!(parse_sizes(input, |_| {}) <= input.len());
}
