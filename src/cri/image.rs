//! Images as their callers see them, and what is shown to registries.

use kina_image::{AuthFields, Credentials, Image};
use kina_model::SpecError;

use super::v1;
use crate::placement;

/// The image that a specification at that field names. Every handler runs the same images, so
/// that one which is known changes nothing.
///
/// # Errors
/// When it names none, or a handler that is not known.
pub fn image_name(field: &str, spec: v1::ImageSpec) -> Result<String, SpecError> {
    let v1::ImageSpec { image, annotations: _, user_specified_image: _, runtime_handler, image_ref: _ } =
        spec;
    if image.is_empty() {
        return Err(SpecError::invalid(format!("{field}.image"), "is empty; name an image"));
    }
    placement::known(&format!("{field}.runtime_handler"), &runtime_handler)?;
    Ok(image)
}

/// An image, in lists and statuses. Its id is also what PullImage returns and
/// what containers name: the digest of its configuration.
#[must_use]
pub fn image(image: &Image) -> v1::Image {
    let (uid, username) = user(&image.config.user);
    let id = image.id.to_string();
    v1::Image {
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        // What removing it frees, as the kubelet takes it: its files in the store.
        // It takes 0 for an error.
        size: image.stored_size.max(1),
        uid: uid.map(|value| v1::Int64Value { value }),
        username,
        spec: Some(v1::ImageSpec {
            image: image.repo_tags.iter().chain(&image.repo_digests).next().unwrap_or(&id).clone(),
            ..v1::ImageSpec::default()
        }),
        // kina keeps no image of its own.
        pinned: false,
        id,
    }
}

/// The user of an image's configuration, its group left out: a number, or a
/// name, or neither.
fn user(text: &str) -> (Option<i64>, String) {
    let name = text.split_once(':').map_or(text, |(user, _)| user);
    match name.parse::<u32>() {
        Ok(uid) => (Some(uid.into()), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

/// What a verbose ImageStatus tells.
#[must_use]
pub fn info(image: &Image) -> serde_json::Value {
    serde_json::json!({
        "id": image.id,
        "manifest": image.manifest_digest,
        "platform": { "os": image.os, "architecture": image.architecture, "variant": image.variant },
        "created": image.config.created,
        "layers": image.layers.iter().map(|layer| serde_json::json!({
            "diffId": layer.diff_id,
            "digest": layer.digest,
            "size": layer.size,
            "imageSize": layer.image_size,
        })).collect::<Vec<_>>(),
        "imageSpec": {
            "config": {
                "User": image.config.user,
                "Env": image.config.env,
                "Entrypoint": image.config.entrypoint,
                "Cmd": image.config.cmd,
                "WorkingDir": image.config.working_dir,
                "Labels": image.config.labels,
                "StopSignal": image.config.stop_signal,
                "Volumes": image.config.volumes,
                "ExposedPorts": image.config.exposed_ports,
            },
        },
    })
}

/// What to show the registry; `None` for nothing.
///
/// # Errors
/// When it cannot be decoded.
pub fn credentials(auth: Option<v1::AuthConfig>) -> Result<Option<Credentials>, kina_image::Error> {
    let Some(v1::AuthConfig { username, password, auth, server_address, identity_token, registry_token }) =
        auth
    else {
        return Ok(None);
    };
    Credentials::from_fields(AuthFields {
        username,
        password,
        auth,
        server_address,
        identity_token,
        registry_token,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users() {
        for (text, uid, name) in [
            ("", None, ""),
            ("1002", Some(1002), ""),
            ("1003:1004", Some(1003), ""),
            ("www-data", None, "www-data"),
            ("www-data:1004", None, "www-data"),
            ("0", Some(0), ""),
            ("-1", None, "-1"),
        ] {
            assert_eq!(user(text), (uid, name.to_owned()), "{text}");
        }
    }

    #[test]
    fn no_secret_is_printed() {
        let auth = v1::AuthConfig { password: "hush".into(), auth: "hush".into(), ..Default::default() };
        let env = v1::KeyValue { key: "A".into(), value: b"hush".to_vec() };
        let request = v1::PullImageRequest { auth: Some(auth), ..Default::default() };
        let config = v1::ContainerConfig { envs: vec![env], ..Default::default() };
        let printed = format!("{request:?}{config:?}");
        assert!(!printed.contains("hush") && !printed.contains("104, 117"), "{printed}");
        assert!(printed.contains("key: \"A\""), "{printed}");
    }

    #[test]
    fn credentials_are_read() {
        assert!(credentials(None).unwrap().is_none());
        assert!(credentials(Some(v1::AuthConfig::default())).unwrap().is_none());
        let basic = v1::AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        assert!(credentials(Some(basic)).unwrap().unwrap() == Credentials::basic("u", "p"));
        let bad = v1::AuthConfig { auth: "%".into(), ..Default::default() };
        assert!(credentials(Some(bad)).is_err());
    }
}
