//! What Apple's program prints as JSON, of the versions 0.12 to 1.2: until 1.0 a
//! container's `status` was a text, its networks lay beside it, and images and
//! addresses had other names. Unknown members are left alone, and what is `null` is as good as left
//! out, which is how Apple's encoder says it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Deserializer};

use super::{Image, Listed, State};
use crate::Version;

/// `null` as what is there without it.
fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[derive(Deserialize)]
struct Container {
    configuration: Configuration,
    #[serde(default)]
    status: Option<Status>,
    /// Until 1.0.
    #[serde(default, deserialize_with = "nullable")]
    networks: Vec<Network>,
}

#[derive(Deserialize)]
struct Configuration {
    id: String,
    #[serde(default, deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    image: Option<ImageDescription>,
}

#[derive(Deserialize)]
struct ImageDescription {
    reference: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Status {
    /// Until 1.0.
    Word(String),
    Object {
        state: String,
        #[serde(default, deserialize_with = "nullable")]
        networks: Vec<Network>,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    #[serde(default, alias = "address")]
    ipv4_address: Option<String>,
}

fn state(word: &str) -> State {
    match word {
        "running" => State::Running,
        "stopping" => State::Stopping,
        "stopped" => State::Stopped,
        _ => State::Unknown,
    }
}

/// `192.168.64.3/24`, or without the length.
fn address(text: &str) -> Option<IpAddr> {
    text.split('/').next()?.parse().ok()
}

/// `container list --format json`.
pub(super) fn containers(output: &[u8]) -> Result<Vec<Listed>, serde_json::Error> {
    let containers: Option<Vec<Container>> = serde_json::from_slice(output)?;
    let listed = containers.into_iter().flatten().map(|container| {
        let (state, networks) = match container.status {
            Some(Status::Word(word)) => (state(&word), container.networks),
            Some(Status::Object { state: word, networks }) => (state(&word), networks),
            None => (State::Unknown, container.networks),
        };
        let address = networks.into_iter().find_map(|network| address(&network.ipv4_address?));
        Listed {
            id: container.configuration.id,
            state,
            labels: container.configuration.labels,
            image: container.configuration.image.map(|image| image.reference).unwrap_or_default(),
            address,
        }
    });
    Ok(listed.collect())
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ListedImage {
    Today {
        configuration: ImageConfiguration,
    },
    /// Until 1.0.
    Before {
        reference: String,
        descriptor: Descriptor,
    },
}

#[derive(Deserialize)]
struct ImageConfiguration {
    name: String,
    descriptor: Descriptor,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

/// `container image list --format json`.
pub(super) fn images(output: &[u8]) -> Result<Vec<Image>, serde_json::Error> {
    let images: Option<Vec<ListedImage>> = serde_json::from_slice(output)?;
    let images = images.into_iter().flatten().map(|image| match image {
        ListedImage::Today { configuration: ImageConfiguration { name, descriptor } } => {
            Image { name, digest: descriptor.digest }
        }
        ListedImage::Before { reference, descriptor } => Image { name: reference, digest: descriptor.digest },
    });
    Ok(images.collect())
}

#[derive(Deserialize)]
struct Program {
    version: String,
}

/// `container system version --format json`: the program, and the service while it
/// answers. An entry whose version is not understood is left out.
pub(super) fn versions(output: &[u8]) -> Result<Vec<Version>, serde_json::Error> {
    let programs: Vec<Program> = serde_json::from_slice(output)?;
    Ok(programs.iter().filter_map(|program| Version::find(&program.version)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A running and a stopped container as 1.2.2 prints them.
    const TODAY: &str = r#"[
      {"configuration":{"capAdd":["ALL"],"creationDate":"2026-08-08T01:00:00Z","id":"p1",
        "image":{"descriptor":{"digest":"sha256:ab","mediaType":"application\/vnd.oci.image.index.v1+json","size":856},
                 "reference":"localhost\/kina-pod:1"},
        "labels":{"k":"v"},"mounts":[{"destination":"\/layers","options":["ro"],"source":"\/a","type":{"virtiofs":{}}}],
        "networks":[{"network":"default","options":{"hostname":"p1","mtu":1280}}]},
       "id":"p1",
       "status":{"networks":[{"hostname":"p1","ipv4Address":"192.168.64.3\/24","ipv4Gateway":"192.168.64.1",
          "ipv6Address":"fd12::1\/64","macAddress":"f2:00:00:00:00:01","mtu":1280,"network":"default",
          "variant":"reserved"}],"startedDate":"2026-08-08T01:00:01Z","state":"running"}},
      {"configuration":{"id":"p2","image":{"descriptor":{"digest":"sha256:cd"},"reference":"x"},"labels":{}},
       "id":"p2","status":{"networks":[],"state":"stopped"}}]"#;

    /// The same of 0.12.3: the status is a word, dates are numbers.
    const BEFORE: &str = r#"[
      {"configuration":{"id":"p1","image":{"descriptor":{"digest":"sha256:ab"},"reference":"localhost\/kina-pod:1"},
        "labels":{"k":"v"}},
       "networks":[{"network":"default","hostname":"p1","ipv4Address":"192.168.64.3\/24","ipv4Gateway":"192.168.64.1"}],
       "startedDate":775000000.5,"status":"running"},
      {"configuration":{"id":"p2","image":{"descriptor":{"digest":"sha256:cd"},"reference":"x"},"labels":{}},
       "networks":[],"status":"stopped"}]"#;

    #[test]
    fn containers_of_all_versions() {
        for text in [TODAY, BEFORE] {
            let [one, two] = &containers(text.as_bytes()).unwrap()[..] else { panic!("not two") };
            assert_eq!((one.id.as_str(), one.state), ("p1", State::Running));
            assert_eq!(one.address, Some([192, 168, 64, 3].into()));
            assert_eq!(one.labels["k"], "v");
            assert_eq!(one.image, "localhost/kina-pod:1");
            assert_eq!((two.id.as_str(), two.state, two.address), ("p2", State::Stopped, None));
        }
        // The names until 0.7.
        let old = BEFORE.replace("ipv4Address", "address").replace("ipv4Gateway", "gateway");
        assert_eq!(containers(old.as_bytes()).unwrap()[0].address, Some([192, 168, 64, 3].into()));
        let strange = TODAY.replace(r#""state":"stopped""#, r#""state":"paused""#);
        assert_eq!(containers(strange.as_bytes()).unwrap()[1].state, State::Unknown);
        let stopping = TODAY.replace(r#""state":"stopped""#, r#""state":"stopping""#);
        assert_eq!(containers(stopping.as_bytes()).unwrap()[1].state, State::Stopping);
        assert_eq!(containers(b"[]").unwrap(), []);
        assert_eq!(containers(b"null").unwrap(), []);
        for text in [
            TODAY.replace(r#""networks":[]"#, r#""networks":null"#),
            TODAY.replace(r#""labels":{}"#, r#""labels":null"#),
        ] {
            assert_ne!(text, TODAY);
            assert_eq!(containers(text.as_bytes()).unwrap(), containers(TODAY.as_bytes()).unwrap());
        }
        assert!(containers(b"{}").is_err());
        assert!(containers(b"").is_err());
    }

    #[test]
    fn images_of_all_versions() {
        let today = r#"[{"id":"ab","configuration":{"name":"localhost\/kina-pod:1","creationDate":"2026-08-08T01:00:00Z",
            "descriptor":{"mediaType":"m","digest":"sha256:ab","size":1}},"variants":[]}]"#;
        let before = r#"[{"reference":"localhost\/kina-pod:1","fullSize":"1 MB",
            "descriptor":{"mediaType":"m","digest":"sha256:ab","size":1}}]"#;
        for text in [today, before] {
            let image = Image { name: "localhost/kina-pod:1".into(), digest: "sha256:ab".into() };
            assert_eq!(images(text.as_bytes()).unwrap(), [image]);
        }
        assert_eq!(images(b"null").unwrap(), []);
    }

    #[test]
    fn versions_of_program_and_service() {
        let both = r#"[{"appName":"container","version":"1.2.2","buildType":"release","commit":"a"},
            {"appName":"container-apiserver","buildType":"release","commit":"a",
             "version":"container-apiserver version 1.1.0 (build: release, commit: a)"}]"#;
        assert_eq!(versions(both.as_bytes()).unwrap(), [Version::new(1, 2, 2), Version::new(1, 1, 0)]);
        let strange = r#"[{"appName":"container","version":"unspecified"}]"#;
        assert_eq!(versions(strange.as_bytes()).unwrap(), []);
    }
}
