//! Credentials that a node has, and who gets to see them.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kina_image::{Config, Credentials, Error, Images};

use crate::fixtures::small_image;
use crate::registry::{Access, Registry, Reply, blob_path, config};

async fn serving(access: Access) -> Registry {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    registry.require(access);
    registry
}

fn encoded(pair: &str) -> String {
    STANDARD.encode(pair)
}

/// A node whose docker configuration is in the directory, as are its helpers.
fn node(directory: &Path, docker: &str) -> Config {
    let mut config = config(directory);
    let path = directory.join("config.json");
    std::fs::write(&path, docker).unwrap();
    config.docker_configs = vec![directory.join("missing.json"), path];
    config.credential_helper_directories = vec![directory.to_owned()];
    config.timeouts.credential_helper = Duration::from_secs(10);
    config
}

/// Pulls `app:v1` into an empty store.
async fn pull(node: &Config, registry: &str, credentials: Option<&Credentials>) -> Result<(), Error> {
    let root = tempfile::tempdir().unwrap();
    let store = Images::open(Config { root: root.path().to_owned(), ..node.clone() }).await.unwrap();
    store.pull(&format!("{registry}/app:v1").parse().unwrap(), credentials, None).await.map(drop)
}

/// A credential helper. Another process writes it, so that no child of this one
/// has it open while it is started.
fn helper(directory: &Path, name: &str, script: &str) {
    let path = directory.join(format!("docker-credential-{name}"));
    let status = std::process::Command::new("sh")
        .args(["-c", "printf '#!/bin/sh\\n%s\\n' \"$2\" >\"$1\" && chmod 755 \"$1\"", "sh"])
        .arg(path)
        .arg(script)
        .status()
        .unwrap();
    assert!(status.success());
}

#[tokio::test]
async fn a_401_is_met_with_what_docker_knows() {
    let directory = tempfile::tempdir().unwrap();
    for access in [Access::Basic("user:secret-word"), Access::Bearer(Some("user:secret-word"))] {
        let registry = serving(access).await;
        let host = &registry.address;
        let good = format!(r#"{{"auth":"{}"}}"#, encoded("user:secret-word"));
        let bad = format!(r#"{{"auth":"{}"}}"#, encoded("user:secret-wrong"));
        for (auths, works) in [
            (format!(r#""{host}":{good}"#), true),
            (format!(r#""http://{host}/v2/":{good}"#), true),
            (format!(r#""{host}":{{"username":"user","password":"secret-word"}}"#), true),
            (format!(r#""{host}":{bad},"{host}/app":{good}"#), true),
            (format!(r#""{host}":{bad}"#), false),
            (format!(r#""{host}/other":{good}"#), false),
            (format!(r#""other.example":{good}"#), false),
            (String::new(), false),
        ] {
            let node = node(directory.path(), &format!(r#"{{"auths":{{{auths}}}}}"#));
            match pull(&node, host, None).await {
                Ok(()) => assert!(works, "{auths}"),
                Err(error) => {
                    assert!(!works && matches!(error, Error::Denied { status: 401, .. }), "{auths}: {error}");
                    assert!(!format!("{error} {error:?}").contains("secret"), "{error}");
                }
            }
        }
        // What a pull brings comes before what the node has.
        let given = Credentials::basic("user", "secret-word");
        let wrong = Credentials::basic("user", "secret-wrong");
        pull(&node(directory.path(), &format!(r#"{{"auths":{{"{host}":{bad}}}}}"#)), host, Some(&given))
            .await
            .unwrap();
        let good = node(directory.path(), &format!(r#"{{"auths":{{"{host}":{good}}}}}"#));
        assert!(pull(&good, host, Some(&wrong)).await.is_err());
        // They are shown to whom asks for them only.
        registry.require(Access::Anyone);
        let before = registry.seen().len();
        pull(&good, host, None).await.unwrap();
        assert!(registry.seen()[before..].iter().all(|seen| seen.authorization.is_none()));
    }
}

#[tokio::test]
async fn helpers_answer_for_their_registry() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    let registry = serving(Access::Basic("user:secret-word")).await;
    let host = &registry.address;
    let answer = r#"{"ServerURL":"x","Username":"user","Secret":"secret-word"}"#;
    // It answers for this very server only.
    helper(
        path,
        "good",
        &format!("[ \"$1\" = get ] && read -r server && [ \"$server\" = {host} ] && echo '{answer}'"),
    );
    helper(path, "none", "echo 'credentials not found in native keychain'; exit 1");
    helper(path, "fails", "echo secret-word; echo secret-word >&2; exit 3");
    helper(path, "garbage", "echo 'secret-word {'");
    helper(path, "floods", "while :; do echo secret-word-secret-word-secret-word-secret-word; done");
    helper(path, "deaf", &format!("exec <&-; echo '{answer}'"));
    helper(path, "hangs", &format!("echo $$ >{}; exec sleep 1000", path.join("pid").display()));
    let entry = format!(r#""auths":{{"{host}":{{"auth":"{}"}}}}"#, encoded("user:secret-word"));
    let named = |name: &str| format!(r#"{{"credHelpers":{{"{host}":"{name}"}}}}"#);
    for (docker, words) in [
        (named("good"), None),
        (named("deaf"), None),
        (r#"{"credsStore":"good"}"#.to_owned(), None),
        // The store is for what has no entry, a helper that is named comes first.
        (format!(r#"{{"credsStore":"fails",{entry}}}"#), None),
        (format!(r#"{{"credHelpers":{{"{host}":"fails"}},{entry}}}"#), Some("\"fails\"")),
        (r#"{"credHelpers":{"other.example":"good"}}"#.to_owned(), Some("401")),
        (named("none"), Some("401")),
        (named("garbage"), Some("\"garbage\": its answer is no JSON")),
        (named("floods"), Some("\"floods\": it answers with more than")),
        (named("absent"), Some("\"absent\": cannot start docker-credential-absent")),
        (named("../good"), Some("its name is not made of")),
        ("{\n\"secret-word\"".to_owned(), Some("config.json:2")),
        (
            format!(r#"{{"auths":{{"{host}":{{"auth":"secret-word!"}}}}}}"#),
            Some("config.json: the entry for 127.0.0.1"),
        ),
    ] {
        let outcome = pull(&node(path, &docker), host, None).await;
        match (outcome, words) {
            (Ok(()), None) => {}
            (Err(error), Some(words)) => {
                assert!(error.to_string().contains(words), "{docker}: {error}");
                assert!(!format!("{error} {error:?}").contains("secret-word"), "{error}");
            }
            (outcome, _) => panic!("{docker}: {outcome:?}"),
        }
    }
    // One that hangs is ended.
    let mut node = node(path, &named("hangs"));
    node.timeouts.credential_helper = Duration::from_millis(200);
    let error = pull(&node, host, None).await.unwrap_err().to_string();
    assert!(error.contains("\"hangs\": no answer within 200ms"), "{error}");
    let pid = std::fs::read_to_string(path.join("pid")).unwrap();
    let process = format!("/proc/{}/cmdline", pid.trim());
    crate::fixtures::until("the helper is gone", || {
        std::fs::read(&process).map_or(true, |line| !line.starts_with(b"sleep"))
    })
    .await;
    // Nobody is asked where nobody wants credentials.
    registry.require(Access::Anyone);
    pull(&node, host, None).await.unwrap();
}

#[tokio::test]
async fn each_host_sees_its_own_credentials_only() {
    let directory = tempfile::tempdir().unwrap();
    let image = small_image("x");
    let mirror = serving(Access::Basic("mirror:m-secret")).await;
    let server = serving(Access::Basic("server:s-secret")).await;
    let storage = Registry::start().await;
    let layer = blob_path("app", &image.blobs[1]);
    let challenge = Reply::status(401).header("WWW-Authenticate", "Basic realm=\"x\"");
    storage.route("/storage", challenge);
    let location = format!("http://{}/storage", storage.address);
    mirror.route(&layer, Reply::status(307).header("Location", location));
    let auth = |pair: &str| format!(r#"{{"auth":"{}"}}"#, encoded(pair));
    let docker = format!(
        r#"{{"auths":{{"{}":{},"{}":{},"{}":{}}}}}"#,
        mirror.address,
        auth("mirror:m-secret"),
        server.address,
        auth("server:s-secret"),
        storage.address,
        auth("storage:t-secret"),
    );
    let mut node = node(directory.path(), &docker);
    node.plain_http = vec![server.address.clone()];
    node.mirrors.insert(server.address.clone(), vec![format!("http://{}", mirror.address)]);
    let saw = |registry: &Registry, secrets: &[&str]| {
        for given in registry.seen().iter().filter_map(|seen| seen.authorization.as_deref()) {
            assert!(secrets.iter().any(|pair| given == format!("Basic {}", encoded(pair))), "{given}");
        }
    };
    // The mirror serves the manifest; its storage refuses, so the server has to.
    pull(&node, &server.address, None).await.unwrap();
    assert_eq!((mirror.count("/v2/app/manifests/v1"), server.count(&layer)), (2, 2));
    // Those of the pull are for the registry alone.
    pull(&node, &server.address, Some(&Credentials::basic("server", "s-secret"))).await.unwrap();
    saw(&mirror, &["mirror:m-secret"]);
    saw(&server, &["server:s-secret"]);
    assert!(storage.count("/storage") >= 2);
    saw(&storage, &[]);
}
