//! `hosts.toml`, Docker's `certs.d` and TLS against real servers.

use std::fs;
use std::path::{Path, PathBuf};

use kina_image::{Config, Credentials, Error, Image, Images, check_hosts};

use crate::certificates::Authority;
use crate::fixtures::{TestImage, small_image};
use crate::registry::{Access, Registry, Reply, blob_path, config};

/// A closed port.
const NOBODY: &str = "http://127.0.0.1:1";

/// What a node has configured.
struct Node {
    root: tempfile::TempDir,
    config: Config,
}

impl Node {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut config = config(root.path());
        config.hosts_directories = vec![root.path().join("certs.d"), root.path().join("more.d")];
        Self { root, config }
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn hosts(&self, directory: &str, text: &str) {
        self.write(&format!("certs.d/{directory}/hosts.toml"), text);
    }

    async fn store(&self, root: &Path) -> Images {
        Images::open(Config { root: root.to_owned(), ..self.config.clone() }).await.unwrap()
    }

    /// Pulls into an empty store.
    async fn pull(&self, reference: &str) -> Result<Image, Error> {
        self.pull_as(reference, None).await
    }

    async fn pull_as(&self, reference: &str, credentials: Option<&Credentials>) -> Result<Image, Error> {
        let root = tempfile::tempdir().unwrap();
        self.store(root.path()).await.pull(&reference.parse().unwrap(), credentials, None).await
    }
}

/// The error and its causes.
fn text(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

#[track_caller]
fn expect(case: &str, outcome: Result<Image, Error>, wanted: Result<(), &[&str]>) {
    match (outcome, wanted) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(words)) => {
            let text = text(&error);
            for word in words {
                assert!(text.contains(word), "{case}: {word:?} is not in {text:?}");
            }
        }
        (Ok(_), Err(words)) => panic!("{case}: pulled, expected {words:?}"),
        (Err(error), Ok(())) => panic!("{case}: {}", text(&error)),
    }
}

async fn serving(image: &TestImage) -> Registry {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", image);
    registry
}

async fn serving_tls(authority: &Authority, clients: Option<&Authority>) -> Registry {
    let registry = Registry::start_tls(authority.server(clients)).await;
    registry.serve_image("app", "v1", &small_image("x"));
    registry
}

/// Tries settings for a host as those of a mirror and of the server itself.
async fn each_way(registry: &Registry, node: &Node, cases: &[(&str, Result<(), &[&str]>)]) {
    let address = &registry.address;
    for (settings, wanted) in cases {
        node.hosts(&registry.directory(), &format!("server = \"https://{address}\"\n{settings}"));
        expect(settings, node.pull(&format!("{address}/app:v1")).await, *wanted);
        node.hosts("mirrored.invalid", &format!("server = \"{NOBODY}\"\n[host.\"{address}\"]\n{settings}"));
        expect(settings, node.pull("mirrored.invalid/app:v1").await, *wanted);
    }
}

#[tokio::test]
async fn authorities_are_those_of_the_file() {
    let (authority, other) = (Authority::new("one"), Authority::new("another"));
    let registry = serving_tls(&authority, None).await;
    let node = Node::new();
    for directory in [&registry.directory(), "mirrored.invalid"] {
        node.write(&format!("certs.d/{directory}/ca.pem"), &authority.pem);
        node.write(&format!("certs.d/{directory}/certs/other.pem"), &other.pem);
        node.write(&format!("certs.d/{directory}/empty.pem"), "");
    }
    let absolute = node.write("elsewhere/ca.pem", &authority.pem);
    let absolute = format!("ca = {absolute:?}");
    let host = format!("https://{}", registry.address);
    let untrusted = Err(&[&*host, "certificate", "UnknownIssuer", "set ca in its hosts.toml"][..]);
    each_way(
        &registry,
        &node,
        &[
            ("ca = \"ca.pem\"", Ok(())),
            ("ca = [\"certs/other.pem\", \"ca.pem\"]", Ok(())),
            (&absolute, Ok(())),
            ("skip_verify = true", Ok(())),
            ("", untrusted),
            ("skip_verify = false", untrusted),
            ("ca = \"certs/other.pem\"", untrusted),
            ("ca = \"missing.pem\"", Err(&["missing.pem"])),
            ("ca = \"empty.pem\"", Err(&["empty.pem", "no certificate"])),
        ],
    )
    .await;
    // The name must be right, too.
    let misnamed = Registry::start_tls(authority.misnamed_server()).await;
    node.hosts("mirrored.invalid", &format!("[host.\"https://{}\"]\nca = \"ca.pem\"", misnamed.address));
    let words = Err(&["another.invalid", "ask it by a name that its certificate has"][..]);
    expect("another name", node.pull("mirrored.invalid/app:v1").await, words);
    // As containerd has it, a registry on loopback is not verified unasked.
    Node::new().pull(&format!("{}/app:v1", registry.address)).await.unwrap();
}

/// A certificate does not become better by trying again; the next host is asked.
#[tokio::test]
async fn a_wrong_certificate_is_final_for_its_host() {
    let (authority, other) = (Authority::new("one"), Authority::new("another"));
    let registry = serving_tls(&authority, None).await;
    let plain = serving(&small_image("x")).await;
    let mut node = Node::new();
    node.config.attempts = 5;
    // Nobody would wait that long.
    node.config.retry_delay = std::time::Duration::from_secs(3600);
    node.write("certs.d/mirrored.invalid/ca.pem", &other.pem);
    let host = format!("[host.\"https://{}\"]\nca = \"ca.pem\"", registry.address);
    node.hosts("mirrored.invalid", &format!("server = \"http://{}\"\n{host}", plain.address));
    node.pull("mirrored.invalid/app:v1").await.unwrap();
    let error = node.pull("mirrored.invalid/other:v1").await.unwrap_err();
    let Error::AllHosts { attempts, .. } = &error else { panic!("{error}") };
    assert!(attempts[0].reason.contains("set ca in its hosts.toml"), "{error}");
    assert!(!attempts[0].reason.contains("tries"), "{error}");
    // Where it is sent from there is told as well.
    let location = format!("https://{}/v2/app/manifests/v1", registry.address);
    plain.route("/v2/moved/manifests/v1", Reply::status(307).header("Location", location));
    node.hosts("mirrored.invalid", &format!("server = \"http://{}\"", plain.address));
    let place = format!("https://{}, where it sends us", registry.address);
    let words: &[&str] = &[&place, "UnknownIssuer", "set ca"];
    expect("redirect", node.pull("mirrored.invalid/moved:v1").await, Err(words));
}

/// A 200 is not a manifest yet: a portal's page is one as well.
#[tokio::test]
async fn a_mirror_that_talks_nonsense_is_passed_over() {
    let image = small_image("x");
    let (mirror, server) = (Registry::start().await, serving(&image).await);
    let node = Node::new();
    let host = format!("[host.\"http://{}\"]", mirror.address);
    node.hosts("mirrored.invalid", &format!("server = \"http://{}\"\n{host}", server.address));
    let index = "application/vnd.oci.image.index.v1+json";
    let nonsense: [(&str, &str, &[u8]); 6] = [
        ("a page", "text/html", b"<html>Log in first</html>"),
        ("nothing", "application/json", b""),
        ("no manifest", "application/json", b"{}"),
        ("an old one", "application/json", br#"{"schemaVersion": 1}"#),
        ("another type", index, &image.manifest),
        ("a deep one", "application/json", &[b'['; 10_000]),
    ];
    for (case, kind, body) in nonsense {
        let reply = Reply::ok(body.to_vec()).header("Content-Type", kind);
        mirror.route("/v2/app/manifests/v1", reply.clone());
        mirror.route("/v2/other/manifests/v1", reply);
        let asked = mirror.count("/v2/app/manifests/v1");
        expect(case, node.pull("mirrored.invalid/app:v1").await, Ok(()));
        assert_eq!(mirror.count("/v2/app/manifests/v1"), asked + 1, "{case}");
        let failed = node.pull("mirrored.invalid/other:v1").await;
        expect(
            case,
            failed,
            Err(&[&format!("http://{}", mirror.address), ": mirrored.invalid/other:v1: ", "not found"]),
        );
    }
}

#[tokio::test]
async fn clients_show_their_certificates() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let registry = serving_tls(&servers, Some(&clients)).await;
    let node = Node::new();
    let (client, stranger) = (clients.identity(), servers.identity());
    let write = |directory: &str, name: &str, text: &str| {
        node.write(&format!("certs.d/{directory}/{name}"), text);
    };
    for directory in [&registry.directory(), "mirrored.invalid"] {
        write(directory, "ca.pem", &servers.pem);
        write(directory, "client.pem", &client.certificate);
        write(directory, "client-key.pem", &client.key);
        write(directory, "both.pem", &format!("{}{}", client.key, client.certificate));
        write(directory, "stranger.pem", &format!("{}{}", stranger.certificate, stranger.key));
        write(directory, "stranger-key.pem", &stranger.key);
    }
    let host = format!("https://{}", registry.address);
    let with = |client: &str| format!("ca = \"ca.pem\"\n{client}");
    let cases: [(String, Result<(), &[&str]>); 10] = [
        (with("client = [[\"client.pem\", \"client-key.pem\"]]"), Ok(())),
        (with("client = \"both.pem\""), Ok(())),
        (with("client = [\"both.pem\"]"), Ok(())),
        (with("client = [[\"both.pem\", \"\"]]"), Ok(())),
        (with("client = [\"stranger.pem\", \"both.pem\"]"), Ok(())),
        ("client = \"both.pem\"\nskip_verify = true".to_owned(), Ok(())),
        (with(""), Err(&[&host, "CertificateRequired", "set client in its hosts.toml"])),
        (with("client = \"stranger.pem\""), Err(&[&host, "alert", "set client in its hosts.toml"])),
        (with("client = [[\"client.pem\", \"stranger-key.pem\"]]"), Err(&["stranger-key.pem", "another"])),
        (with("client = \"client.pem\""), Err(&["client.pem", "no private key"])),
    ];
    let cases: Vec<_> = cases.iter().map(|(settings, wanted)| (settings.as_str(), *wanted)).collect();
    each_way(&registry, &node, &cases).await;
}

#[tokio::test]
async fn docker_keeps_certificates_beside_each_other() {
    let (servers, clients, other) = (Authority::new("a"), Authority::new("b"), Authority::new("c"));
    let registry = serving_tls(&servers, Some(&clients)).await;
    let client = clients.identity();
    let node = Node::new();
    let directory = format!("certs.d/{}", registry.address);
    let reference = format!("{}/app:v1", registry.address);
    node.write(&format!("{directory}/ca.crt"), &servers.pem);
    expect("no client", node.pull(&reference).await, Err(&["CertificateRequired"]));
    node.write(&format!("{directory}/client.cert"), &client.certificate);
    node.write(&format!("{directory}/client.key"), &client.key);
    node.pull(&reference).await.unwrap();
    // Where the registry sends us its authority counts, not its client's certificate.
    let image = small_image("x");
    let layer = &image.blobs[1];
    let storage = Registry::start_tls(servers.server(None)).await;
    storage.route("/storage", Reply::ok(layer.clone()));
    let location = format!("https://{}/storage", storage.address);
    registry.route(&blob_path("app", layer), Reply::status(307).header("Location", location));
    node.pull(&reference).await.unwrap();
    node.write(&format!("{directory}/ca.crt"), &other.pem);
    expect("other authority", node.pull(&reference).await, Err(&["UnknownIssuer"]));
    node.write(&format!("{directory}/ca.crt"), "none");
    expect("no authority", node.pull(&reference).await, Err(&["ca.crt"]));
    let problems = check_hosts(&node.config).unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[tokio::test]
async fn hosts_are_asked_in_the_files_order() {
    let image = small_image("x");
    let (good, server) = (serving(&image).await, serving(&image).await);
    let bad = Registry::start().await;
    let node = Node::new();
    let manifest = "/v2/app/manifests/v1";
    let broken = format!("http://{}", bad.address);
    for (first, status, reason) in [
        (&*broken, 404, "not found"),
        (&*broken, 500, "HTTP status 500"),
        (&*broken, 403, "access denied"),
        (&*broken, 418, "HTTP status 418"),
        (NOBODY, 404, "refused"),
    ] {
        bad.route(manifest, Reply::status(status));
        bad.route("/v2/other/manifests/v1", Reply::status(status));
        let hosts = format!("[host.\"{first}\"]\n[host.\"http://{}\"]", good.address);
        node.hosts("mirrored.invalid", &format!("server = \"http://{}\"\n{hosts}", server.address));
        let asked = good.count(manifest);
        node.pull("mirrored.invalid/app:v1").await.unwrap();
        assert_eq!(good.count(manifest), asked + 1, "{reason}");
        // None has it: each is named, with what it said.
        node.hosts("mirrored.invalid", &format!("server = \"{NOBODY}\"\n{hosts}"));
        let error = node.pull("mirrored.invalid/other:v1").await.unwrap_err();
        let Error::Unreachable { attempts, .. } = &error else { panic!("{error}") };
        let told: Vec<_> = attempts.iter().map(|attempt| attempt.host.as_str()).collect();
        assert_eq!(told, [first, &format!("http://{}", good.address), NOBODY], "{error}");
        assert!(attempts[0].reason.contains(reason), "{error}");
        assert_eq!(attempts[1].reason, "not found");
        assert!(attempts[2].reason.contains("refused"), "{error}");
    }
    assert!(server.seen().is_empty());
    assert!(good.seen().iter().all(|seen| seen.query == "ns=mirrored.invalid"));
}

#[tokio::test]
async fn a_host_has_its_own_settings() {
    let image = small_image("x");
    let (mirror, server) = (serving(&image).await, serving(&image).await);
    let (one, two) = (&mirror.address, &server.address);
    let node = Node::new();
    let write = |hosts: &str| {
        node.hosts("mirrored.invalid", &format!("server = \"http://{two}\"\n{hosts}"));
    };
    let reference = "mirrored.invalid/app:v1";

    // One that may only serve content is not asked what a tag means.
    write(&format!("[host.\"http://{one}\"]\ncapabilities = [\"pull\"]"));
    node.pull(reference).await.unwrap();
    let layer = blob_path("app", &image.blobs[1]);
    assert_eq!((mirror.count("/v2/app/manifests/v1"), mirror.count(&layer)), (0, 1));
    assert_eq!((server.count("/v2/app/manifests/v1"), server.count(&layer)), (1, 0));
    let by_digest = format!("mirrored.invalid/app@{}", image.manifest_digest());
    node.pull(&by_digest).await.unwrap();
    assert_eq!(mirror.count(&format!("/v2/app/manifests/{}", image.manifest_digest())), 1);
    // One that may do neither is not asked at all, which is said.
    write(&format!("[host.\"http://{one}\"]\ncapabilities = [\"push\"]"));
    let asked = mirror.seen().len();
    let error = node.pull("mirrored.invalid/other:v1").await.unwrap_err().to_string();
    assert!(error.contains(one) && error.contains("resolve no tags"), "{error}");
    assert_eq!(mirror.seen().len(), asked);

    // Headers are for that host, not for the next and not for where it redirects.
    let elsewhere = Registry::start().await;
    elsewhere.route("/storage", Reply::ok(image.blobs[1].clone()));
    let location = format!("http://{}/storage", elsewhere.address);
    mirror.route(&layer, Reply::status(307).header("Location", location));
    write(&format!(
        "[host.\"http://{one}\".header]\nx-pass = [\"word\", \"two\"]\nAuthorization = \"Basic secret\""
    ));
    let asked = mirror.seen().len();
    node.pull(reference).await.unwrap();
    for seen in &mirror.seen()[asked..] {
        let values: Vec<_> = seen.headers.iter().filter(|(name, _)| name == "x-pass").collect();
        assert_eq!(values.len(), 2, "{seen:?}");
        assert_eq!(seen.authorization.as_deref(), Some("Basic secret"));
    }
    assert_eq!(elsewhere.seen().len(), 1);
    for seen in elsewhere.seen().iter().chain(&server.seen()) {
        assert!(seen.headers.iter().all(|(name, _)| name != "x-pass" && name != "authorization"), "{seen:?}");
    }

    // Paths.
    for (path, settings, asked) in [
        ("", "", "/v2/app/manifests/v9"),
        ("/v2", "", "/v2/app/manifests/v9"),
        ("/deep/er/", "", "/deep/er/v2/app/manifests/v9"),
        ("/deep/er", "override_path = true", "/deep/er/app/manifests/v9"),
        ("/v2/project", "override_path = true", "/v2/project/app/manifests/v9"),
    ] {
        let before = mirror.count(asked);
        write(&format!("[host.\"http://{one}{path}\"]\n{settings}"));
        node.pull("mirrored.invalid/app:v9").await.unwrap_err();
        assert_eq!(mirror.count(asked), before + 1, "{path} {settings}");
    }
}

#[tokio::test]
async fn the_most_special_directory_counts() {
    let image = small_image("x");
    let registries = [serving(&image).await, serving(&image).await];
    let mut node = Node::new();
    let url = |number: usize| format!("http://{}", registries[number].address);
    let file = |number: usize| format!("server = \"{NOBODY}\"\n[host.\"{}\"]", url(number));
    let mut asked = [0, 0];
    // Each is above those before it.
    for (number, directory) in [
        "more.d/_default",
        "certs.d/_default",
        "",
        "more.d/mirrored.invalid:5000",
        "more.d/mirrored.invalid_5000_",
        "certs.d/mirrored.invalid:5000",
        "certs.d/mirrored.invalid_5000_",
    ]
    .into_iter()
    .enumerate()
    {
        let number = number % 2;
        if directory.is_empty() {
            node.config.mirrors.insert("mirrored.invalid:5000".to_owned(), vec![url(number)]);
        } else {
            node.write(&format!("{directory}/hosts.toml"), &file(number));
        }
        node.pull("mirrored.invalid:5000/app:v1").await.unwrap();
        asked[number] += 1;
        let counts = [0, 1].map(|number: usize| registries[number].count("/v2/app/manifests/v1"));
        assert_eq!(counts, asked, "{directory}");
    }
    // Another registry has the default.
    node.pull("other.invalid/app:v1").await.unwrap();
    assert_eq!(registries[1].seen().last().unwrap().query, "ns=other.invalid");
}

#[tokio::test]
async fn edits_count_from_the_next_pull_on() {
    let (one, two) = (serving(&small_image("1")).await, serving(&small_image("2")).await);
    let node = Node::new();
    let root = tempfile::tempdir().unwrap();
    let store = node.store(root.path()).await;
    let reference = "mirrored.invalid/app:v1".parse().unwrap();
    for (registry, content) in [(&one, "1"), (&two, "2"), (&one, "1")] {
        node.hosts("mirrored.invalid", &format!("server = \"http://{}\"", registry.address));
        let image = store.pull(&reference, None, None).await.unwrap();
        assert_eq!(image.id, small_image(content).id());
    }
    node.hosts("mirrored.invalid", "server =");
    assert!(matches!(store.pull(&reference, None, None).await, Err(Error::HostsFile { .. })));
}

#[tokio::test]
async fn a_broken_file_sends_nobody_anywhere() {
    let image = small_image("x");
    let (mirror, server) = (serving(&image).await, serving(&image).await);
    let mut node = Node::new();
    node.config.plain_http = vec![server.address.clone()];
    let hosts = format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", server.address, mirror.address);
    let reference = format!("{}/app:v1", server.address);
    for (line, words) in [
        ("ca = 3", "`ca`"),
        ("skip_verify = \"yes\"", "`skip_verify`"),
        ("capabilities = [\"all\"]", "capability \"all\""),
        ("client = [[\"a\", \"b\", \"c\"]]", "`client`"),
        ("dial_timeout = \"soon\"", "`dial_timeout`"),
        ("ca = ", ""),
        ("[host.\"ftp://x\"]", "ftp://x"),
    ] {
        node.hosts(&server.directory(), &format!("{hosts}{line}\n"));
        let error = node.pull(&reference).await.unwrap_err();
        assert!(matches!(error, Error::HostsFile { line: Some(3), .. }), "{line}: {error}");
        expect(line, Err(error), Err(&[&format!("{}/hosts.toml:3", server.directory()), words]));
        assert_eq!(check_hosts(&node.config).unwrap().len(), 1);
    }
    assert!(mirror.seen().is_empty() && server.seen().is_empty());
    node.hosts(&server.directory(), &format!("{hosts}fancy = true\n"));
    node.pull(&reference).await.unwrap();
    assert!(!mirror.seen().is_empty() && server.seen().is_empty());
    assert!(check_hosts(&node.config).unwrap().is_empty());
}

#[tokio::test]
async fn tls_is_not_left() {
    let authority = Authority::new("one");
    let registry = serving_tls(&authority, None).await;
    let plain = serving(&small_image("x")).await;
    let node = Node::new();
    let address = &registry.address;
    node.write(&format!("certs.d/{}/ca.pem", registry.directory()), &authority.pem);
    let reference = format!("{address}/app:v1");
    let credentials = Credentials::basic("user", "secret-word");
    for settings in ["ca = \"ca.pem\"", "skip_verify = true"] {
        node.hosts(&registry.directory(), &format!("server = \"https://{address}\"\n{settings}"));
        registry.require(Access::Bearer(Some("user:secret-word")));
        node.pull_as(&reference, Some(&credentials)).await.unwrap();
        expect(settings, node.pull(&reference).await, Err(&["401"]));
        registry.require(Access::Anyone);
        // A token server or a redirect without TLS is refused before anything is sent.
        let challenge = format!("Bearer realm=\"http://{}/token\",service=\"x\"", plain.address);
        let to = format!("http://{}/v2/app/manifests/v1", plain.address);
        for reply in [
            Reply::status(401).header("WWW-Authenticate", challenge),
            Reply::status(307).header("Location", to),
        ] {
            registry.route("/v2/app/manifests/v2", reply);
            let pulled = node.pull_as(&format!("{address}/app:v2"), Some(&credentials)).await;
            let place = format!("http://{}", plain.address);
            expect(settings, pulled, Err(&[&place, "which is http"]));
        }
    }
    assert!(plain.seen().is_empty());
    // What speaks no TLS is not asked without it, beyond what is said to be so.
    let address = &plain.address;
    node.hosts(&plain.directory(), &format!("server = \"https://{address}\""));
    assert!(node.pull(&format!("{address}/app:v1")).await.is_err());
    assert!(plain.seen().iter().all(|seen| !seen.path.starts_with("/v2/")), "{:?}", plain.seen());
    // A port said to be http with settings for TLS is tried with both.
    for (registry, settings) in [(&registry, "skip_verify = true"), (&plain, "skip_verify = true")] {
        let host = format!("server = \"{NOBODY}\"\n[host.\"http://{}\"]\n{settings}", registry.address);
        node.hosts("mirrored.invalid", &host);
        node.pull("mirrored.invalid/app:v1").await.unwrap();
    }
}
