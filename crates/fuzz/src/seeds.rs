//! What both mutators start from: small inputs of every kind, good and bad.

pub(crate) const TAR_WORDS: &[&str] = &[
    "SCHILY.xattr.user.a=",
    "GNU.sparse.map=",
    "GNU.sparse.size=",
    "GNU.sparse.major=1",
    "GNU.sparse.minor=0",
    "GNU.sparse.name=",
    "GNU.sparse.realsize=",
    "GNU.sparse.offset=",
    "GNU.sparse.numbytes=",
    "path=",
    "linkpath=",
    "size=",
    "mtime=",
    "uid=",
    "ustar",
    "ustar  ",
    ".wh.",
    ".wh..wh..opq",
    "../",
    "/",
    "0,1,",
    "00000001000",
    "77777777777",
    "18446744073709551615",
    "9223372036854775807",
    "-1",
];
pub(crate) const MANIFEST_WORDS: &[&str] = &[
    "\"schemaVersion\":2",
    "\"mediaType\":",
    "\"config\":",
    "\"layers\":",
    "\"manifests\":",
    "\"digest\":",
    "\"size\":",
    "\"platform\":",
    "\"os\":\"linux\"",
    "\"architecture\":\"amd64\"",
    "\"variant\":",
    "\"annotations\":",
    "null",
    "[",
    "]",
    "{",
    "}",
    "1e400",
    "-1",
    "18446744073709551616",
    "\\ud800",
    DIGEST_WORD,
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "\"Config\":",
    "\"Layers\":",
    "\"RepoTags\":",
];
pub(crate) const CONFIGURATION_WORDS: &[&str] = &[
    "\"config\":",
    "\"rootfs\":",
    "\"diff_ids\":",
    "\"Env\":",
    "\"Cmd\":",
    "\"Labels\":",
    "\"Volumes\":",
    "\"os\":",
    "\"architecture\":",
    "\"variant\":",
    "\"created\":",
    "null",
    "[",
    "]",
    "{",
    "}",
    DIGEST_WORD,
];
const DIGEST_WORD: &str = "\"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\"";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn bytes(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Headers field by field; the target computes their checksums.
struct Stream(Vec<u8>);

impl Stream {
    fn entry(mut self, name: &str, kind: u8, link: &str, magic: &[u8], data: &[u8]) -> Self {
        let mut block = [0; 512];
        let mut set = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
        set(0, name.as_bytes());
        set(100, b"0000644\x000001750\x000001750\0");
        set(124, format!("{:011o}\0{:011o}\0", data.len(), 1_700_000_000).as_bytes());
        set(156, &[kind]);
        set(157, link.as_bytes());
        set(257, magic);
        set(329, b"0000001\x000000003\0");
        self.0.extend(block);
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn tar() -> Vec<Vec<u8>> {
    const USTAR: &[u8] = b"ustar\x0000";
    const GNU: &[u8] = b"ustar  \0";
    let start = || Stream(Vec::new());
    let pax = |records: &str| start().entry("pax", b'x', "", USTAR, records.as_bytes());
    let mut old_sparse = start().entry("sparse", b'S', "", GNU, &[7; 600]);
    old_sparse.0[386..386 + 24].copy_from_slice(b"00000000000\x0000000001130\0");
    old_sparse.0[483..483 + 12].copy_from_slice(b"00000040000\0");
    let mut map = b"2\n0\n512\n8192\n100\n".to_vec();
    map.resize(512 + 612, b'm');
    vec![
        start()
            .entry("d/", b'5', "", USTAR, b"")
            .entry("d/f", b'0', "", USTAR, b"content")
            .entry("d/h", b'1', "d/f", USTAR, b"")
            .entry("l", b'2', "d", USTAR, b"")
            .entry("l/through", b'0', "", USTAR, &[1; 5000])
            .end(),
        start()
            .entry("c", b'3', "", GNU, b"")
            .entry("b", b'4', "", GNU, b"")
            .entry("p", b'6', "", GNU, b"")
            .entry(".wh.c", b'0', "", GNU, b"")
            .entry("d/.wh..wh..opq", b'0', "", GNU, b"")
            .end(),
        start().entry("././@LongLink", b'L', "", GNU, &[b'n'; 150]).entry("n", b'0', "", GNU, b"x").end(),
        start().entry("././@LongLink", b'K', "", GNU, &[b'n'; 150]).entry("n", b'2', "n", GNU, b"").end(),
        pax("30 mtime=1700000000.123456789\n26 SCHILY.xattr.user.a=bc\n15 path=a/b/cd\n")
            .entry("x", b'0', "", USTAR, b"x")
            .end(),
        pax("22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n30 GNU.sparse.realsize=00009000\n")
            .entry("sparse", b'0', "", USTAR, &map)
            .end(),
        pax("28 GNU.sparse.map=0,1,8000,1\n25 GNU.sparse.size=009000\n")
            .entry("sparse", b'0', "", USTAR, b"xy")
            .end(),
        old_sparse.end(),
        start().entry("../escape", b'0', "", USTAR, b"").end(),
        Vec::new(),
        vec![0; 1024],
    ]
}

/// Found by the fuzzer: a file in the deepest directory that is allowed.
const DEEPEST: &[u8] = &[
    19, 0, 0, 0, 120, 23, 145, 145, 145, 145, 145, 145, 145, 145, 145, 145, 19, 0, 0, 0, 46, 119, 104, 46,
    46, 145, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 222, 94, 94,
    94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 182, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 94, 145, 85, 85,
    85, 118, 172, 14, 94,
];

/// Decisions, as the target reads them: an operation, a path, what belongs to its kind.
pub(crate) fn layer() -> Vec<Vec<u8>> {
    vec![
        Vec::new(),
        (0..=255).collect(),
        (0..=255).rev().collect(),
        vec![2, 0, 0, 0, 1, 0, 1, 0, 9, 5, 3, 0, 1, 0, 0],
        [0x17, 0, 0, 4, 9, 1, 9, 9, 3, 9, 2, 0, 1, 0, 5, 0, 0, 13].repeat(4),
        (0..600_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect(),
        DEEPEST.to_vec(),
    ]
}

pub(crate) fn manifest() -> Vec<Vec<u8>> {
    let image = format!(
        r#"{{"schemaVersion":2,"mediaType":"{MANIFEST}","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":{DIGEST_WORD},"size":2}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":{DIGEST_WORD},"size":3}}]}}"#
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":{DIGEST_WORD},"size":2,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}},{{"mediaType":"{INDEX}","digest":"sha512:0","size":1,"annotations":{{"a":"b"}}}}]}}"#
    );
    bytes(&[
        &format!("{MANIFEST}\n{image}"),
        &format!("{INDEX}; charset=utf-8\n{index}"),
        &format!("\n{image}"),
        "\n{\"schemaVersion\":1,\"fsLayers\":[]}",
        "\n{\"manifests\":null,\"config\":null,\"layers\":null}",
        "text/html\n<html>",
        "\n[[[[[[[[",
    ])
}

pub(crate) fn configuration() -> Vec<Vec<u8>> {
    bytes(&[
        &format!(
            r#"{{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","config":{{"User":"1:2","Env":["A=b"],"Cmd":["x"],"Labels":{{"a":"b"}},"Volumes":{{"/d":{{}}}},"ExposedPorts":{{"80/tcp":{{}}}},"StopSignal":""}},"rootfs":{{"type":"layers","diff_ids":[{DIGEST_WORD}]}}}}"#
        ),
        r#"{"config":{"Env":null,"Volumes":null},"rootfs":{"diff_ids":null}}"#,
        "{}",
        "null",
    ])
}

pub(crate) fn archive() -> Vec<Vec<u8>> {
    bytes(&[
        &format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{MANIFEST}","digest":{DIGEST_WORD},"size":2,"annotations":{{"io.containerd.image.name":"docker.io/library/a:b","org.opencontainers.image.ref.name":"b"}}}}]}}"#
        ),
        r#"[{"Config":"c.json","RepoTags":["a:b",""],"Layers":["../x/layer.tar","l/layer.tar"]}]"#,
        r#"[{"Config":"c.json","RepoTags":null,"Layers":null}]"#,
        "[]",
        "{}",
    ])
}

pub(crate) fn reference() -> Vec<Vec<u8>> {
    let digest = DIGEST_WORD.trim_matches('"');
    bytes(&[
        "busybox",
        "docker.io/library/busybox:1.36",
        "localhost:5000/a/b_c/d__e-f.g:tag",
        "[::1]:5000/a",
        "index.docker.io/a",
        "Registry.example/a:b",
        &format!("a:b@{digest}"),
        &format!("registry.example:443/a/b@{digest}"),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "a/../b",
        "",
    ])
}

pub(crate) fn challenge() -> Vec<Vec<u8>> {
    bytes(&[
        r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a:pull,push""#,
        r#"Basic realm="a", Bearer realm="b\"c\\",scope=x"#,
        "Negotiate, NTLM abc==, basic",
        "Bearer service=x\nBearer realm=\"unclosed, scope=\"",
        ",,= =\"\\",
    ])
}

pub(crate) fn hosts() -> Vec<Vec<u8>> {
    bytes(&[
        "server = \"https://registry.example\"\n[host.\"http://mirror.example:5000/us\"]\n\
         capabilities = [\"pull\", \"resolve\"]\nca = [\"a.pem\"]\nclient = [[\"b.cert\", \"b.key\"], [\"c.pem\", \"\"]]\n\
         skip_verify = true\noverride_path = true\ndial_timeout = \"1m1.5s\"\n\
         [host.\"http://mirror.example:5000/us\".header]\nx-one = [\"1\", \"2\"]\n",
        "skip_verify = true\nclient = \"/one.pem\"\n[header]\nauthorization = \"Basic eDp5\"\n",
        "host = { \"a\" = {}, \"https://[::1]:1/v2\" = { ca = \"x\" } }\n",
        "[host.\"ftp://x\"]\n",
        "",
    ])
}

/// Steps of a trial: a client asks and is answered, both sides talk, one of them
/// ends it or goes; packets of all kinds; time that passes.
pub(crate) fn vsock() -> Vec<Vec<u8>> {
    const OPEN: &[u8] = &[0, 0, 0, 80, 9, 1, 100, 5, 0, 0, 100, 0, 0];
    let after_open = |steps: &[u8]| [OPEN, steps].concat();
    vec![
        OPEN.to_vec(),
        after_open(&[1, 0, 90, 9, 3, 50, 50, 50, 6, 0, 0, 70, 100, 0, 0, 2, 0, 127]),
        after_open(&[6, 0, 0, 250, 100, 0, 0, 2, 0, 255, 9, 9, 200, 3, 0, 7, 0, 200, 100, 0, 3]),
        after_open(&[1, 0, 255, 4, 0, 9, 31, 200, 200, 200, 11, 255, 11, 255]),
        after_open(&[7, 0, 230, 0, 0, 0, 7, 0, 250, 0, 250, 0, 8, 3, 0, 0, 0, 0, 0, 0, 0, 2]),
        vec![0, 0, 210, 1, 0, 4, 0, 1, 230, 0, 2, 250, 11, 100, 2, 1, 127],
    ]
}

pub(crate) const TOKEN: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJ-_01234";

/// One chain each way: a packet to nobody, and room for its reset.
pub(crate) fn vsock_rings() -> Vec<Vec<u8>> {
    let write = |at: u16, bytes: &[u8]| {
        let length = u8::try_from(bytes.len()).expect("a short piece");
        [&at.to_le_bytes()[..], &[length], bytes].concat()
    };
    // virtio 1.2, 2.7.5: address, length, flags (1 is NEXT, 2 is WRITE), next.
    let descriptor = |address: u64, length: u32, flags: u16, next: u16| {
        [&address.to_le_bytes()[..], &length.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
            .concat()
    };
    // 2.7.6: flags, index, the chains' first descriptors.
    let available = |index: u16, heads: [u16; 2]| {
        let [first, second] = heads.map(u16::to_le_bytes);
        [&[0, 0][..], &index.to_le_bytes(), &first, &second].concat()
    };
    // 5.10.6: from 3:7 to 2:9, no bytes, a stream's packet (1) that requests (1).
    let mut header = [3_u64.to_le_bytes(), 2_u64.to_le_bytes()].concat();
    for word in [7_u32, 9, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend([1, 0, 1, 0]);
    header.extend([0; 12]);
    let room = [
        write(0x400, &descriptor(0x2000, 44, 2 | 1, 1)),
        write(0x410, &descriptor(0x3000, 4096, 2, 0)),
        write(0x500, &available(1, [0, 0])),
    ];
    let packet = [
        write(0x1000, &header),
        write(0, &descriptor(0x1000, 44, 0, 0)),
        write(0x100, &available(1, [0, 0])),
    ];
    let whole = |flags: u8| [&[flags][..], &room.concat(), &packet.concat()].concat();
    // A chain that goes round, addresses beyond the memory, a head that is none.
    let round = [&[0][..], &write(0, &descriptor(0x1000, 8, 1, 0)), &packet[2]].concat();
    let beyond = [&[1][..], &write(0, &descriptor(u64::MAX - 8, 64, 0, 0)), &packet[2]].concat();
    let no_head = [&[0][..], &write(0x100, &available(2, [99, 3]))].concat();
    vec![whole(0), whole(1), round, beyond, no_head, Vec::new()]
}

pub(crate) fn streaming_url() -> Vec<Vec<u8>> {
    bytes(&[
        &format!("/exec/{TOKEN}"),
        &format!("/portforward/{TOKEN}?port=80&port=443,8080&x=%2C"),
        &format!("/attach/../exec/{TOKEN}"),
        "/exec/",
        "?port=0",
        "",
    ])
}

pub(crate) fn websocket() -> Vec<Vec<u8>> {
    let texts: &[&[u8]] = &[
        b"\0input",
        b"\x04{\"Width\":80,\"Height\":24}\n",
        b"0Zm9v",
        b"\xff\0",
        b"\xff",
        b"{\"Width\":1",
        b"",
    ];
    texts.iter().map(|text| text.to_vec()).collect()
}
