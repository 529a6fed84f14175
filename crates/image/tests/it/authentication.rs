//! Who is asked for what, and who gets to see credentials.

use std::error::Error as _;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use kina_image::{AuthFields, Credentials, Error, Images};

use crate::fixtures::small_image;
use crate::registry::{Access, Registry, Reply, TOKEN, blob_path, config};

async fn pull(registry: &Registry, credentials: Option<&Credentials>) -> Result<(), Error> {
    let root = tempfile::tempdir().unwrap();
    let store = registry.store(root.path()).await;
    store.pull(&registry.reference("app:v1"), credentials, None).await.map(drop)
}

async fn registry_with(access: Access) -> Registry {
    let registry = Registry::start().await;
    registry.serve_image("app", "v1", &small_image("x"));
    registry.require(access);
    registry
}

fn fields(edit: impl FnOnce(&mut AuthFields)) -> Credentials {
    let mut fields = AuthFields::default();
    edit(&mut fields);
    Credentials::from_fields(fields).unwrap().unwrap()
}

#[tokio::test]
async fn basic_and_bearer() {
    let good = Credentials::basic("user", "secret-word");
    let bad = Credentials::basic("user", "wrong-secret");
    let encoded = fields(|fields| fields.auth = STANDARD.encode("user:secret-word"));
    let elsewhere = fields(|fields| {
        fields.username = "user".into();
        fields.password = "secret-word".into();
        fields.server_address = "https://registry.example".into();
    });
    for access in [Access::Basic("user:secret-word"), Access::Bearer(Some("user:secret-word"))] {
        let registry = registry_with(access).await;
        pull(&registry, Some(&good)).await.unwrap();
        pull(&registry, Some(&encoded)).await.unwrap();
        for credentials in [Some(&bad), Some(&elsewhere), None] {
            let error = pull(&registry, credentials).await.unwrap_err();
            assert!(matches!(&error, Error::Denied { status: 401, .. }), "{error}");
            assert!(!format!("{error} {error:?} {:?}", error.source()).contains("secret"));
        }
    }
    let registry = registry_with(Access::Bearer(None)).await;
    pull(&registry, None).await.unwrap();
    let token = registry.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert!(
        token.query.contains("scope=repository%3Aapp%3Apull") && token.query.contains("service=test"),
        "{token:?}"
    );
    // One token serves the whole pull.
    assert_eq!(registry.count("/token"), 1);
}

#[tokio::test]
async fn ready_made_tokens() {
    let registry = registry_with(Access::Bearer(Some("refresh-me"))).await;
    let identity = fields(|fields| fields.identity_token = "refresh-me".into());
    pull(&registry, Some(&identity)).await.unwrap();
    let token = registry.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    assert_eq!(token.method, "POST");
    assert!(token.body.contains("grant_type=refresh_token"), "{token:?}");

    let registry = registry_with(Access::Bearer(Some("unused"))).await;
    let ready = fields(|fields| fields.registry_token = TOKEN.into());
    pull(&registry, Some(&ready)).await.unwrap();
    assert_eq!(registry.count("/token"), 0);
    let wrong = fields(|fields| fields.registry_token = "wrong-secret".into());
    let error = pull(&registry, Some(&wrong)).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { .. }), "{error}");
}

#[tokio::test]
async fn redirects_carry_no_credentials_elsewhere() {
    let test = small_image("x");
    let registry = registry_with(Access::Basic("user:word")).await;
    let elsewhere = Registry::start().await;
    let layer = &test.blobs[1];
    elsewhere.route("/storage", Reply::ok(layer.clone()));
    let to = |url: &str| Reply::status(307).header("Location", url);
    registry.route(&blob_path("app", layer), to("/v2/hop"));
    registry.route("/v2/hop", to(&format!("http://{}/storage?signature=hidden", elsewhere.address)));
    let credentials = Credentials::basic("user", "word");
    pull(&registry, Some(&credentials)).await.unwrap();
    let hop = registry.seen().into_iter().find(|seen| seen.path == "/v2/hop").unwrap();
    assert!(hop.authorization.is_some());
    let seen = elsewhere.seen();
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].authorization, None);

    registry.route("/v2/hop", to("/v2/hop"));
    let error = pull(&registry, Some(&credentials)).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    // A signed URL stays out of errors.
    registry.route("/v2/hop", to("http://127.0.0.1:1/storage?signature=hidden"));
    let error = pull(&registry, Some(&credentials)).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }) && !error.to_string().contains("hidden"), "{error}");
    for location in ["file:///etc/passwd", "http://"] {
        registry.route("/v2/hop", to(location));
        assert!(pull(&registry, Some(&credentials)).await.is_err());
    }
}

#[tokio::test]
async fn mirrors_come_first_and_see_no_credentials() {
    let mirror = Registry::start().await;
    let second = Registry::start().await;
    let test = small_image("x");
    mirror.serve_image("pause", "1", &test);
    // The first mirror has a broken layer, which the second makes good.
    mirror.route(&blob_path("pause", &test.blobs[1]), Reply::ok(vec![1; test.blobs[1].len()]));
    second.serve_image("pause", "1", &test);
    let root = tempfile::tempdir().unwrap();
    let mut config = config(root.path());
    let urls = vec![format!("http://{}", mirror.address), format!("http://{}/v2/", second.address)];
    config.mirrors.insert("registry.invalid".to_owned(), urls);
    let store = Images::open(config.clone()).await.unwrap();
    let credentials = Credentials::basic("user", "word");
    let reference = "registry.invalid/pause:1".parse().unwrap();
    let image = store.pull(&reference, Some(&credentials), None).await.unwrap();
    assert_eq!(image.repo_tags, ["registry.invalid/pause:1"]);
    assert_eq!(second.count("/v2/pause/manifests/1"), 0);
    assert_eq!(second.count(&blob_path("pause", &test.blobs[1])), 1);
    for seen in mirror.seen().iter().chain(&second.seen()) {
        assert_eq!(seen.authorization, None);
        assert_eq!(seen.query, "ns=registry.invalid");
    }
    // Every host's reason is told.
    let reference = "registry.invalid/other:1".parse().unwrap();
    let error = store.pull(&reference, None, None).await.unwrap_err();
    let Error::Unreachable { attempts, .. } = &error else { panic!("{error}") };
    assert_eq!(attempts.len(), 3, "{error}");
    assert!(attempts[0].host.contains(&mirror.address) && attempts[0].reason == "not found", "{error}");
    assert!(attempts[2].host == "https://registry.invalid", "{error}");
    drop(store);

    config.mirrors.insert("a".to_owned(), vec!["ftp://x".to_owned()]);
    assert!(matches!(Images::open(config).await, Err(Error::InvalidMirror { .. })));
}
