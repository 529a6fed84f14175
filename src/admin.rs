//! The generated types of the admin interface (`proto/admin`), for the service
//! and for the command line.

use std::fmt;

/// The largest chunk of an archive on its way in or out, in bytes.
pub const CHUNK_LIMIT: usize = 1 << 20;

/// The generated messages, client and server.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    clippy::unwrap_used,
    clippy::doc_markdown,
    reason = "generated code; proto/admin/admin.proto has the documentation"
)]
pub mod v1 {
    tonic::include_proto!("kina.admin.v1");
}

impl fmt::Debug for v1::Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn no_password_is_printed() {
        let credentials = Some(v1::Credentials { user: "someone".into(), password: "hush".into() });
        let request = v1::PullImageRequest { reference: "a/b".into(), credentials };
        let printed = format!("{request:?}");
        assert!(printed.contains("someone") && !printed.contains("hush"), "{printed}");
    }
}
