//! What to show a registry.

mod docker;
mod helper;

pub(crate) use self::docker::DockerConfigs;

use std::fmt;

use base64::Engine;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};

use crate::Error;
use crate::reference::{DEFAULT_REGISTRY, Reference};
use crate::registry::secret_header;
use reqwest::header::HeaderValue;

/// The fields of the CRI's `AuthConfig`; empty means not given.
#[derive(Clone, Default)]
pub struct AuthFields {
    /// User name for basic authentication, at the registry or its token server.
    pub username: String,
    /// Password that goes with it.
    pub password: String,
    /// Base64 of `username:password`, as in Docker's config file.
    pub auth: String,
    /// The registry that the credentials are for; empty means whichever is asked.
    pub server_address: String,
    /// An OAuth2 refresh token, exchanged for an access token.
    pub identity_token: String,
    /// A bearer token, sent as it is.
    pub registry_token: String,
}

/// Credentials for one registry. `Debug` shows their kind only.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    kind: Kind,
    server: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Basic { username: String, password: String },
    IdentityToken(String),
    RegistryToken(String),
}

impl Credentials {
    /// A user name and a password.
    #[must_use]
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        let kind = Kind::Basic { username: username.into(), password: password.into() };
        Self { kind, server: None }
    }

    /// What the fields hold, `None` if they are all empty. The first of
    /// registry token, identity token, user name with password, and `auth` wins.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidCredentials`] if `auth` is not base64 of a user name, a
    /// colon and a password.
    pub fn from_fields(fields: AuthFields) -> Result<Option<Self>, Error> {
        let kind = if !fields.registry_token.is_empty() {
            Kind::RegistryToken(fields.registry_token)
        } else if !fields.identity_token.is_empty() {
            Kind::IdentityToken(fields.identity_token)
        } else if !fields.username.is_empty() || !fields.password.is_empty() {
            Kind::Basic { username: fields.username, password: fields.password }
        } else if !fields.auth.is_empty() {
            decode_basic(&fields.auth)?
        } else {
            return Ok(None);
        };
        let server = (!fields.server_address.is_empty()).then(|| server_host(&fields.server_address));
        Ok(Some(Self { kind, server }))
    }

    /// Whether they may be shown to the reference's registry.
    pub(crate) fn applies_to(&self, reference: &Reference) -> bool {
        self.server.as_deref().is_none_or(|server| server == reference.registry())
    }

    /// Whether they are expressly for this host.
    pub(crate) fn is_for(&self, host: &str) -> bool {
        self.server.as_deref() == Some(host)
    }

    /// The `Authorization` header that needs no challenge.
    pub(crate) fn ready_made(&self) -> Option<HeaderValue> {
        match &self.kind {
            Kind::RegistryToken(token) => secret_header(&format!("Bearer {token}")),
            Kind::Basic { .. } | Kind::IdentityToken(_) => None,
        }
    }

    pub(crate) fn kind(&self) -> &Kind {
        &self.kind
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Basic { .. } => "Basic",
            Kind::IdentityToken(_) => "IdentityToken",
            Kind::RegistryToken(_) => "RegistryToken",
        };
        formatter.debug_struct("Credentials").field("kind", &kind).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthFields {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("AuthFields").finish_non_exhaustive()
    }
}

fn decode_basic(auth: &str) -> Result<Kind, Error> {
    let engine = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let bytes =
        engine.decode(auth.trim()).map_err(|_| Error::InvalidCredentials { reason: "auth is not base64" })?;
    let text =
        String::from_utf8(bytes).map_err(|_| Error::InvalidCredentials { reason: "auth is not UTF-8" })?;
    let Some((username, password)) = text.split_once(':') else {
        return Err(Error::InvalidCredentials { reason: "auth has no colon between user name and password" });
    };
    // Docker's config file pads the password with NULs.
    let password = password.trim_end_matches('\0');
    Ok(Kind::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// `https://index.docker.io/v1/` is `docker.io`; otherwise host and port.
fn server_host(address: &str) -> String {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    canonical(rest.split('/').next().unwrap_or(rest)).to_owned()
}

/// docker.io goes by several names.
fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        host => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_in_order_and_never_shown() {
        let fields = |auth: &str| AuthFields { auth: auth.to_owned(), ..AuthFields::default() };
        assert!(Credentials::from_fields(AuthFields::default()).unwrap().is_none());
        // base64 of user:pass:word
        let basic = Credentials::from_fields(fields("dXNlcjpwYXNzOndvcmQ=")).unwrap().unwrap();
        assert!(basic == Credentials::basic("user", "pass:word"));
        for bad in ["%%%", "dXNlcg=="] {
            assert!(Credentials::from_fields(fields(bad)).is_err(), "{bad}");
        }
        let token = AuthFields {
            username: "hidden-user".into(),
            registry_token: "hidden-token".into(),
            ..AuthFields::default()
        };
        assert!(!format!("{token:?}").contains("hidden"));
        let token = Credentials::from_fields(token).unwrap().unwrap();
        assert!(matches!(token.kind(), Kind::RegistryToken(_)));
        assert!(!format!("{token:?}{basic:?}").contains("hidden"));
        assert!(!format!("{basic:?}").contains("pass"));
    }

    #[test]
    fn credentials_go_to_their_server_only() {
        let for_server = |server: &str| {
            Credentials::from_fields(AuthFields {
                username: "u".into(),
                server_address: server.to_owned(),
                ..AuthFields::default()
            })
            .unwrap()
            .unwrap()
        };
        let docker: Reference = "busybox".parse().unwrap();
        let local: Reference = "127.0.0.1:5000/a".parse().unwrap();
        assert!(for_server("https://index.docker.io/v1/").applies_to(&docker));
        assert!(for_server("http://127.0.0.1:5000").applies_to(&local));
        assert!(!for_server("127.0.0.1:5000").applies_to(&docker));
        assert!(for_server("").applies_to(&local));
    }
}
