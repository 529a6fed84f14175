//! The seccomp profile of a container.

use kina_guest_api::v1;
use kina_guest_api::v1::seccomp::Profile;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

use crate::error::Error;

/// No profile is longer, in bytes.
const PROFILE_LIMIT: usize = 1 << 20;

/// The profile; `None` is unconfined, which a privileged container always is.
pub(super) fn build(request: &v1::CreateContainerRequest) -> Result<Option<LinuxSeccomp>, Error> {
    let asked = request.process.as_ref().and_then(|process| process.seccomp.as_ref());
    if request.privileged {
        return Ok(None);
    }
    let capabilities = request.process.as_ref().map_or(&[][..], |process| &process.bounding);
    match asked.and_then(|seccomp| seccomp.profile.as_ref()) {
        None | Some(Profile::Unconfined(_)) => Ok(None),
        Some(Profile::RuntimeDefault(_)) => {
            let bounding: Vec<_> = super::capability_set(capabilities)?.into_iter().collect();
            Ok(Some(kina_launch::defaults::seccomp(&bounding)))
        }
        Some(Profile::Json(text)) => parse(text, capabilities).map(Some),
    }
}

/// Reads a profile: the OCI runtime specification's form, or Docker's, whose
/// conditions on capabilities and architectures are decided here.
fn parse(text: &str, capabilities: &[String]) -> Result<LinuxSeccomp, Error> {
    let refuse = |reason: String| Error::invalid("process.seccomp.json", reason);
    if text.len() > PROFILE_LIMIT {
        return Err(refuse("is too long".to_owned()));
    }
    let mut profile: Value = serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
    if let Some(map) = profile.get("archMap").and_then(Value::as_array)
        && let Some(entry) = map.iter().find(|entry| entry["architecture"] == NATIVE.0)
    {
        let mut architectures = vec![entry["architecture"].clone()];
        architectures.extend(entry["subArchitectures"].as_array().into_iter().flatten().cloned());
        profile["architectures"] = Value::Array(architectures);
    }
    if let Some(rules) = profile.get_mut("syscalls").and_then(Value::as_array_mut) {
        rules.retain(|rule| applies(rule, capabilities));
        for rule in rules {
            // An older form names one call per rule.
            if let Some(name) = rule.get("name").cloned()
                && rule.get("names").is_none()
            {
                rule["names"] = Value::Array(vec![name]);
            }
        }
    }
    serde_json::from_value(profile).map_err(|error| refuse(error.to_string()))
}

/// The architecture as profiles name it, in their two ways.
#[cfg(target_arch = "x86_64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_X86_64", "amd64");
#[cfg(target_arch = "aarch64")]
const NATIVE: (&str, &str) = ("SCMP_ARCH_AARCH64", "arm64");

/// Whether a rule of Docker's form holds here.
fn applies(rule: &Value, capabilities: &[String]) -> bool {
    let list = |when: &str, what: &str| -> Vec<String> {
        let names = rule[when][what].as_array();
        let names = names.into_iter().flatten().filter_map(Value::as_str);
        names.map(str::to_owned).collect()
    };
    let has = |name: &String| capabilities.contains(name);
    let native = |name: &String| name == NATIVE.1;
    let wanted = list("includes", "arches");
    list("includes", "caps").iter().all(has)
        && (wanted.is_empty() || wanted.iter().any(native))
        && !list("excludes", "caps").iter().any(has)
        && !list("excludes", "arches").iter().any(native)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_decided() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [
                {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
                {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
            ],
            "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"name": "write", "action": "SCMP_ACT_ALLOW"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_CHOWN"]}},
                {"names": ["s390_runtime_instr"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390"]}}
            ]
        }"#;
        let names = |capabilities: &[&str]| -> Vec<String> {
            let capabilities: Vec<String> = capabilities.iter().map(|&c| c.to_owned()).collect();
            let profile = parse(text, &capabilities).unwrap();
            assert_eq!(profile.architectures().as_ref().unwrap().len(), 2);
            let rules = profile.syscalls().clone().unwrap();
            rules.iter().flat_map(|rule| rule.names().clone()).collect()
        };
        assert_eq!(names(&["CAP_CHOWN"]), ["read", "write"]);
        assert_eq!(names(&["CAP_SYS_ADMIN"]), ["read", "write", "mount", "clone"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "[]", "{\"defaultAction\": \"SCMP_ACT_DANCE\"}"] {
            assert!(parse(text, &[]).is_err(), "{text}");
        }
    }
}
