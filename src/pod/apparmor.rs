//! Which AppArmor profile a container gets, and kina's own profile.
//!
//! As with containerd, a container that asks for nothing gets what RuntimeDefault is, and a
//! privileged one nothing unless it names a profile. Whether there is AppArmor is for each pod's
//! guest to say: the node's kernel may have it and a machine's not, or the other way round.
//!
//! The node compiles kina's profile with its `apparmor_parser`, for whatever kernel, and a guest
//! loads it where it is missing. So the node's kernel need not have AppArmor for that of a
//! machine.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kina_guest_api::v1;
use kina_model::{AppArmor, Security, SelinuxOptions, SpecError};
use kina_node::{Node, Program};
use tokio::sync::OnceCell;

use super::context::Paths;
use crate::error::Error;

/// The name of kina's own profile.
const PROFILE: &str = "kina-default";
/// Its text.
const TEXT: &str = include_str!("apparmor/profile");
/// What it is compiled for: what Linux has confined since 5.4, in the words of
/// `/sys/kernel/security/apparmor/features`. A kernel passes over what it does not know.
const FEATURES: &str = include_str!("apparmor/features");

/// Where distributions have the compiler.
const PARSERS: [&str; 2] = ["/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"];
/// It takes 40 ms.
const DEADLINE: Duration = Duration::from_secs(20);
/// The policy has 7 KiB.
const POLICY_LIMIT: usize = 1 << 20;

/// What a container's process is confined by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Confinement {
    /// An AppArmor profile; empty is none.
    pub(super) profile: String,
    /// A compiled policy that has it, to be loaded where it is missing; empty if it must be there.
    pub(super) policy: Vec<u8>,
    /// An SELinux label.
    pub(super) selinux: Option<SelinuxOptions>,
}

/// kina's own profile.
#[derive(Debug)]
pub struct AppArmorPolicy {
    /// A file that the compiler reads, while it runs.
    features: PathBuf,
    compiled: OnceCell<Vec<u8>>,
    /// Whether it has been said that there is no compiler.
    warned: AtomicBool,
}

impl AppArmorPolicy {
    /// Not compiled before it is needed.
    #[must_use]
    pub fn new(paths: &Paths) -> Self {
        let features = paths.run.join("apparmor-features");
        Self { features, compiled: OnceCell::new(), warned: AtomicBool::new(false) }
    }

    /// What of it a container gets, on a kernel with those features.
    ///
    /// # Errors
    /// [`SpecError::Unsupported`] for a profile by name where there is no AppArmor; an error of
    /// the node when kina's cannot be compiled.
    pub(super) async fn confinement(
        &self,
        node: &dyn Node,
        features: v1::Features,
        security: &Security,
    ) -> Result<Confinement, Error> {
        const FIELD: &str = "config.linux.security_context.apparmor.localhost_ref";
        let own = |policy| Confinement { profile: PROFILE.to_owned(), policy, selinux: None };
        match &security.apparmor {
            AppArmor::Localhost(name) if features.apparmor => {
                Ok(Confinement { profile: name.clone(), ..Confinement::default() })
            }
            AppArmor::Localhost(name) => {
                let reason =
                    format!("profile {name:?}: the kernel of this pod has no AppArmor; leave it out");
                Err(SpecError::unsupported(FIELD, reason).into())
            }
            AppArmor::Unconfined => Ok(Confinement::default()),
            AppArmor::Unset | AppArmor::RuntimeDefault if security.privileged || !features.apparmor => {
                Ok(Confinement::default())
            }
            AppArmor::RuntimeDefault => {
                // Without a compiler somebody else may have loaded it: the guest knows.
                let policy = self.policy(node).await?.unwrap_or_default();
                Ok(own(policy))
            }
            AppArmor::Unset => match self.policy(node).await? {
                Some(policy) => Ok(own(policy)),
                None => {
                    if !self.warned.swap(true, Ordering::Relaxed) {
                        tracing::warn!(
                            "there is no apparmor_parser on this node: containers that ask for no AppArmor \
                             profile get none; install the package apparmor"
                        );
                    }
                    Ok(Confinement::default())
                }
            },
        }
    }

    /// kina's profile, compiled; `None` where there is no compiler.
    async fn policy(&self, node: &dyn Node) -> Result<Option<Vec<u8>>, Error> {
        if let Some(compiled) = self.compiled.get() {
            return Ok(Some(compiled.clone()));
        }
        for parser in PARSERS {
            if node.exists(Path::new(parser)).await? {
                let compiled = self.compiled.get_or_try_init(|| self.compile(node, parser)).await?;
                return Ok(Some(compiled.clone()));
            }
        }
        Ok(None)
    }

    async fn compile(&self, node: &dyn Node, parser: &'static str) -> Result<Vec<u8>, Error> {
        node.write_file(&self.features, FEATURES.as_bytes(), 0o600).await?;
        let features = self.features.display().to_string();
        let words = ["--skip-kernel-load", "--skip-cache", "--stdout", "--policy-features", &features];
        let args = words.into_iter().chain(["--kernel-features", &features]).map(str::to_owned).collect();
        let program = Program {
            path: parser.into(),
            args,
            env: Vec::new(),
            stdin: TEXT.as_bytes().to_vec(),
            deadline: DEADLINE,
            max_output: POLICY_LIMIT,
        };
        let ran = node.run(&program).await;
        node.remove_tree(&self.features).await?;
        let output = ran?;
        if output.code != 0 {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(Error::AppArmorProfile { parser, code: output.code, said });
        }
        Ok(output.stdout)
    }
}
