//! Meeting a 401: Basic, and Bearer with a token server.

use reqwest::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{Method, Request, Response, StatusCode, Url};
use serde::Deserialize;

use super::auth::{self, Challenge};
use super::session::{Session, refused_status};
use super::transport::{self, secret_header};
use super::{Failure, Host};
use crate::credentials::{Credentials, Kind};
use crate::manifest;

const TOKEN_ANSWER_LIMIT: u64 = 1 << 20;

impl Session {
    /// Gets what a 401 asks for. `sent` is what was refused; another request may
    /// have had it replaced meanwhile.
    pub(super) async fn renew(
        &self,
        host: &Host,
        sent: Option<&HeaderValue>,
        response: &Response,
    ) -> Result<(), Failure> {
        let _one_at_a_time = host.authorizing.lock().await;
        if host.authorization().as_ref() != sent {
            return Ok(());
        }
        let header = self.authorize(host, sent, response).await?;
        host.set_authorization(header);
        Ok(())
    }

    /// Meets a 401's challenge: the `Authorization` header to come with.
    async fn authorize(
        &self,
        host: &Host,
        sent: Option<&HeaderValue>,
        response: &Response,
    ) -> Result<HeaderValue, Failure> {
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        let challenges = auth::challenges(values.iter().filter_map(|value| value.to_str().ok()));
        let (credentials, detail) = match self.credentials(host).await {
            Ok(credentials) => (credentials, None),
            Err(reason) => (None, Some(reason)),
        };
        let kind = credentials.as_ref().map(Credentials::kind);
        let mut refusal = None;
        for challenge in challenges {
            let header = match (challenge, kind) {
                (Challenge::Bearer { .. }, Some(Kind::RegistryToken(token))) => {
                    secret_header(&format!("Bearer {token}"))
                }
                (Challenge::Bearer { realm, service, scope }, kind) => {
                    match self.token(host, &realm, service, scope, kind).await {
                        Ok(header) => Some(header),
                        // Another challenge may be easier.
                        Err(failure) => {
                            refusal.get_or_insert(failure);
                            None
                        }
                    }
                }
                (Challenge::Basic, Some(Kind::Basic { username, password })) => {
                    transport::basic(username, password)
                }
                (Challenge::Basic, _) => None,
            };
            // What was refused just now is not good enough.
            if let Some(header) = header.filter(|header| Some(header) != sent) {
                return Ok(header);
            }
        }
        match refusal {
            Some(Failure::Denied { status, .. }) => Err(Failure::Denied { status, detail }),
            Some(failure) => Err(failure),
            None => Err(Failure::Denied { status: StatusCode::UNAUTHORIZED.as_u16(), detail }),
        }
    }

    /// What there is to show a host: what the caller gave, or what is configured
    /// for this very host. Looked up once per pull, and only if it is asked for.
    async fn credentials(&self, host: &Host) -> Result<Option<Credentials>, String> {
        if host.given.is_some() {
            return Ok(host.given.clone());
        }
        let find = || async {
            let name = host.name();
            let found = self.registry().docker.find(&name, self.reference().repository()).await;
            found.map_err(|error| {
                tracing::warn!(host = %name, %error, "no credentials could be looked up");
                format!("and no credentials could be looked up: {error}")
            })
        };
        host.found.get_or_init(find).await.clone()
    }

    async fn token(
        &self,
        host: &Host,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
        kind: Option<&Kind>,
    ) -> Result<HeaderValue, Failure> {
        let transport = &self.registry().transport;
        let protocol = |reason: &str| Failure::Protocol(reason.to_owned());
        let mut url = Url::parse(realm).map_err(|_| protocol("its token server has no valid URL"))?;
        let label = transport::place(&url);
        if let Some(objection) = transport.objection(host, &url) {
            return Err(Failure::Protocol(format!("its token server is {label}, {objection}")));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.reference().repository()));
        let mut fields: Vec<_> = service.map(|service| ("service", service)).into_iter().collect();
        let request = match kind {
            Some(Kind::IdentityToken(token)) => {
                fields.push(("scope", scope));
                fields.push(("grant_type", "refresh_token".to_owned()));
                fields.push(("client_id", "kina".to_owned()));
                fields.push(("refresh_token", token.clone()));
                transport.form(url, &fields)?
            }
            kind => {
                fields.extend(scope.split_whitespace().map(|scope| ("scope", scope.to_owned())));
                url.query_pairs_mut().extend_pairs(&fields);
                let mut request = Request::new(Method::GET, url);
                if let Some(Kind::Basic { username, password }) = kind {
                    let header = transport::basic(username, password)
                        .ok_or_else(|| Failure::denied(StatusCode::UNAUTHORIZED.as_u16()))?;
                    request.headers_mut().insert(AUTHORIZATION, header);
                }
                request
            }
        };
        let response = transport.send(host, request).await?;
        match response.status() {
            StatusCode::OK => {}
            // Token servers answer 400 to bad refresh tokens (RFC 6749 §5.2).
            status @ (StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(Failure::denied(status.as_u16()));
            }
            _ => {
                return Err(match refused_status(response).await {
                    Failure::Transient { reason, after } => {
                        Failure::Transient { reason: format!("token server {label}: {reason}"), after }
                    }
                    Failure::Protocol(reason) => Failure::Protocol(format!("token server {label}: {reason}")),
                    failure => failure,
                });
            }
        }
        let bytes = transport.body(response, &label, TOKEN_ANSWER_LIMIT).await?;
        let answer: TokenAnswer = manifest::json(&bytes, &label, "token answer").map_err(Failure::Content)?;
        let tokens = [answer.token, answer.access_token];
        let token = tokens.into_iter().flatten().find(|token| !token.is_empty());
        token
            .and_then(|token| secret_header(&format!("Bearer {token}")))
            .ok_or_else(|| protocol("its token server gave no token"))
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}
