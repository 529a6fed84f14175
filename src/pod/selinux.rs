//! SELinux labels, where a pod's kernel has them. Its guest makes them up: it sees the policy of
//! that kernel's system.

use kina_guest_api::v1;
use kina_model::{PodSpec, Security, SelinuxOptions, SpecError};

const FIELD: &str = "config.linux.security_context.selinux_options";

/// Refuses a pod with a label where there is no SELinux.
pub(super) fn admit(features: v1::Features, pod: &PodSpec) -> Result<(), SpecError> {
    able(features, pod.selinux.is_some())
}

/// The label of a container: its own, else its pod's unless it is privileged.
pub(super) fn of_container(
    features: v1::Features,
    pod: &PodSpec,
    security: &Security,
) -> Result<Option<SelinuxOptions>, SpecError> {
    let of_pod = pod.selinux.as_ref().filter(|_| !security.privileged);
    let label = security.selinux.as_ref().or(of_pod);
    able(features, label.is_some())?;
    Ok(label.cloned())
}

fn able(features: v1::Features, wanted: bool) -> Result<(), SpecError> {
    if wanted && !features.selinux {
        let reason = "the kernel of this pod has no SELinux; leave seLinuxOptions out";
        return Err(SpecError::unsupported(FIELD, reason));
    }
    Ok(())
}
