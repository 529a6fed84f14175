//! The dictionary that SPDY/3 header blocks are compressed with.
//!
//! It is part of the protocol (draft 3, section 2.6.10.1): words, each after its
//! length in four bytes, and then plain text.

/// What both sides' compressors start from.
pub(crate) fn dictionary() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(LENGTH);
    for word in WORDS {
        bytes.extend((word.len() as u32).to_be_bytes());
        bytes.extend(word.as_bytes());
    }
    bytes.extend(TEXT.as_bytes());
    bytes
}

const LENGTH: usize = 1423;

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "options", "head", "post", "put", "delete", "trace", "accept", "accept-charset",
    "accept-encoding", "accept-language", "accept-ranges", "age", "allow", "authorization",
    "cache-control", "connection", "content-base", "content-encoding", "content-language",
    "content-length", "content-location", "content-md5", "content-range", "content-type", "date",
    "etag", "expect", "expires", "from", "host", "if-match", "if-modified-since", "if-none-match",
    "if-range", "if-unmodified-since", "last-modified", "location", "max-forwards", "pragma",
    "proxy-authenticate", "proxy-authorization", "range", "referer", "retry-after", "server", "te",
    "trailer", "transfer-encoding", "upgrade", "user-agent", "vary", "via", "warning",
    "www-authenticate", "method", "get", "status", "200 OK", "version", "HTTP/1.1", "url", "public",
    "set-cookie", "keep-alive", "origin",
];

#[rustfmt::skip]
const TEXT: &str = concat!(
    "1001012012022052063003023033043053063074024054064074084094104114124134144154164175025045",
    "05203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401",
    " Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 S",
    "ervice UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, We",
    "d, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xm",
    "l,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdc",
    "hcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.",
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_one_whose_checksum_the_protocol_sends() {
        let bytes = dictionary();
        let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), byte| {
            let low = (low + u32::from(*byte)) % 65521;
            (low, (high + low) % 65521)
        });
        assert_eq!((bytes.len(), high << 16 | low), (LENGTH, 0xe3c6a7c2));
    }
}
