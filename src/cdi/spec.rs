//! Specifications, as their files say them.

use std::collections::{BTreeMap, HashSet};

use serde::Deserialize;

use super::name::{check_device, check_kind};

/// The versions that are understood. A later one may say what is not known here.
const VERSIONS: [&str; 7] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];

/// A file's content.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec {
    cdi_version: String,
    /// `vendor/class`.
    pub(super) kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// For whoever gets any of the devices.
    #[serde(default)]
    pub(super) container_edits: ContainerEdits,
}

/// A device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default, rename = "annotations")]
    _annotations: BTreeMap<String, String>,
    pub(super) container_edits: ContainerEdits,
}

/// What changes in a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ContainerEdits {
    pub(super) env: Vec<String>,
    pub(super) device_nodes: Vec<Node>,
    pub(super) mounts: Vec<Mount>,
    pub(super) hooks: Vec<Hook>,
    pub(super) intel_rdt: Option<serde_json::Value>,
    #[serde(rename = "additionalGids")]
    pub(super) additional_gids: Vec<u32>,
}

/// A device node. What is not said is as on the node.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Node {
    /// In the container.
    pub(super) path: String,
    /// On the node; the same as in the container if empty.
    #[serde(default)]
    pub(super) host_path: String,
    /// `c`, `b`, `u` or `p`.
    #[serde(default, rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) major: i64,
    #[serde(default)]
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default)]
    pub(super) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(super) kind: String,
}

/// A program that is to run.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
}

impl Spec {
    /// Understands a file's content.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(bytes: &[u8], yaml: bool) -> Result<Self, String> {
        let spec: Self = if yaml {
            // 0644 is octal, as everybody who writes it means.
            let options = serde_saphyr::options! { legacy_octal_numbers: true };
            serde_saphyr::from_slice_with_options(bytes, options).map_err(|error| error.to_string())?
        } else {
            serde_json::from_slice(bytes).map_err(|error| error.to_string())?
        };
        if !VERSIONS.contains(&spec.cdi_version.as_str()) {
            let reason = format!("cdiVersion {:?} is none of {}", spec.cdi_version, VERSIONS.join(", "));
            return Err(reason);
        }
        check_kind(&spec.kind).map_err(|reason| format!("kind: {reason}"))?;
        let mut names = HashSet::new();
        for device in &spec.devices {
            check_device(&device.name).map_err(|reason| format!("devices: {reason}"))?;
            if !names.insert(device.name.as_str()) {
                return Err(format!("devices: {:?} is there twice", device.name));
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_and_yaml_say_the_same() {
        let json = br#"{"cdiVersion":"0.6.0","kind":"vendor.com/net","annotations":{"a":"b"},
            "devices":[{"name":"nic0","containerEdits":{"env":["A=b"],
              "deviceNodes":[{"path":"/dev/x","hostPath":"/dev/null","fileMode":438,"permissions":"rw","uid":7}]}}],
            "containerEdits":{"mounts":[{"hostPath":"/a","containerPath":"/b","options":["ro"]}]}}"#;
        let yaml = b"---\ncdiVersion: 0.6.0\nkind: vendor.com/net\nannotations: {a: b}\ndevices:\n\
            - name: nic0\n  containerEdits:\n    env: [A=b]\n    deviceNodes:\n    - path: /dev/x\n      \
            hostPath: /dev/null\n      fileMode: 0666\n      permissions: rw\n      uid: 7\n\
            containerEdits:\n  mounts:\n  - {hostPath: /a, containerPath: /b, options: [ro]}\n";
        for spec in [Spec::parse(json, false).unwrap(), Spec::parse(yaml, true).unwrap()] {
            assert_eq!(spec.kind, "vendor.com/net");
            let node = &spec.devices[0].container_edits.device_nodes[0];
            assert_eq!((node.host_path.as_str(), node.uid, node.gid), ("/dev/null", Some(7), None));
            assert_eq!(node.file_mode, Some(0o666));
            assert_eq!(spec.container_edits.mounts[0].options, ["ro"]);
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        let ask = |version: &str, kind: &str, devices: &str| {
            let json = format!(r#"{{"cdiVersion":"{version}","kind":"{kind}","devices":{devices}}}"#);
            Spec::parse(json.as_bytes(), false).err().unwrap_or_default()
        };
        assert_eq!(ask("1.0.0", "v/c", "[]"), "");
        for (error, part) in [
            (ask("1.1.0", "v/c", "[]"), "1.1.0"),
            (ask("0.2.0", "v/c", "[]"), "0.2.0"),
            (ask("1.0.0", "vendor", "[]"), "kind: "),
            (ask("1.0.0", "v/c", r#"[{"name":"a b","containerEdits":{}}]"#), "a b"),
            (ask("1.0.0", "v/c", r#"[{"name":"a"}]"#), "containerEdits"),
            (ask("1.0.0", "v/c", r#"[{"name":"a","containerEdits":{"netDevices":[]}}]"#), "netDevices"),
            (
                ask("1.0.0", "v/c", r#"[{"name":"a","containerEdits":{}},{"name":"a","containerEdits":{}}]"#),
                "twice",
            ),
            (ask("1.0.0", "v/c", "["), "expected value"),
        ] {
            assert!(error.contains(part), "{part}: {error:?}");
        }
        assert!(Spec::parse(b"cdiVersion: [", true).is_err());
        assert!(Spec::parse(b"\xff\xfe\x00", true).is_err());
    }
}
