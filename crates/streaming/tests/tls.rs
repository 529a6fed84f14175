//! TLS: the server's certificate, and its clients'.

#![allow(clippy::unwrap_used, reason = "helpers here are part of tests")]

mod support;

use std::sync::Arc;

use kina_spdy::{Connection, Headers, Limits};
use kina_streaming::{Config, Error, PortForward, Request, Server, TlsFiles};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use support::{Fake, Fixture, spdy_headers, text};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn forward_headers(kind: &str) -> Headers {
    Headers::new().with("streamType", kind).with("port", "7").with("requestID", "1")
}

/// A client that trusts one certificate and shows another, or none.
fn tls_client(
    trusted: &CertificateDer<'static>,
    own: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> tokio_rustls::TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let client = match own {
        Some((certificate, key)) => builder.with_client_auth_cert(vec![certificate], key).unwrap(),
        None => builder.with_no_client_auth(),
    };
    tokio_rustls::TlsConnector::from(Arc::new(client))
}

/// A forwarded word comes back, over TLS.
async fn forward_over_tls(fixture: &Fixture, connector: &tokio_rustls::TlsConnector) -> std::io::Result<()> {
    let tcp = tokio::net::TcpStream::connect(fixture.address()).await?;
    let mut stream = connector.connect("streaming".try_into().unwrap(), tcp).await?;
    let forward = Request::PortForward(PortForward { pod: "p".to_owned(), ports: Vec::new() });
    let mut head = format!("POST {} HTTP/1.1\r\nHost: streaming\r\n", fixture.url(forward));
    for (name, value) in spdy_headers("portforward.k8s.io") {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    // A server of TLS 1.3 refuses a client's certificate when the client believes to be connected.
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await?);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", answer.escape_ascii());
    let connection = Connection::client(stream, Limits::default());
    let _error = connection.open(forward_headers("error")).await.unwrap();
    let mut data = connection.open(forward_headers("data")).await.unwrap();
    data.write_all(b"secret").await?;
    data.shutdown().await?;
    assert_eq!(text(data).await, "secret");
    Ok(())
}

#[tokio::test]
async fn tls_with_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["streaming".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("certificate.pem"),
        key: folder.path().join("key.pem"),
        client_ca: None,
    };
    let config = Config { tls: Some(files.clone()), ..Config::default() };
    let missing = Server::new(config.clone(), Arc::new(Fake::default()));
    assert!(matches!(missing, Err(Error::Certificate { .. })), "{missing:?}");
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    let missing = Server::new(config.clone(), Arc::new(Fake::default()));
    assert!(matches!(missing, Err(Error::Key { .. })), "{missing:?}");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();

    let fixture = Fixture::with(config).await;
    forward_over_tls(&fixture, &tls_client(made.cert.der(), None)).await.unwrap();
    // Who trusts another server does not speak with this one, and who speaks no TLS gets no answer.
    let other = rcgen::generate_simple_self_signed(vec!["streaming".to_owned()]).unwrap();
    forward_over_tls(&fixture, &tls_client(other.cert.der(), None)).await.unwrap_err();
    let mut plain = tokio::net::TcpStream::connect(fixture.address()).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _: Result<_, _> = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", answer.escape_ascii());
}

#[tokio::test]
async fn clients_show_a_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let server = rcgen::generate_simple_self_signed(vec!["streaming".to_owned()]).unwrap();
    let files = TlsFiles {
        certificate: folder.path().join("certificate.pem"),
        key: folder.path().join("key.pem"),
        client_ca: Some(folder.path().join("clients.pem")),
    };
    std::fs::write(&files.certificate, server.cert.pem()).unwrap();
    std::fs::write(&files.key, server.signing_key.serialize_pem()).unwrap();
    let config = Config { tls: Some(files), ..Config::default() };
    let start = || Server::new(config.clone(), Arc::new(Fake::default()));
    assert!(matches!(start(), Err(Error::Certificate { .. })), "no file");
    let authorities = folder.path().join("clients.pem");
    std::fs::write(&authorities, "").unwrap();
    assert!(matches!(start(), Err(Error::ClientAuthority { .. })), "nobody could connect");

    let authority = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
        (parameters.self_signed(&key).unwrap(), rcgen::Issuer::new(parameters, key))
    };
    let client = |issuer: &rcgen::Issuer<'_, rcgen::KeyPair>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["kubelet".to_owned()]).unwrap();
        parameters.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = parameters.signed_by(&key, issuer).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Some((certificate.der().clone(), key))
    };
    let (certificate, trusted) = authority("trusted");
    let (_, stranger) = authority("stranger");
    std::fs::write(&authorities, certificate.pem()).unwrap();
    let fixture = Fixture::with(config).await;
    let der = server.cert.der();
    forward_over_tls(&fixture, &tls_client(der, client(&trusted))).await.unwrap();
    forward_over_tls(&fixture, &tls_client(der, client(&stranger))).await.unwrap_err();
    forward_over_tls(&fixture, &tls_client(der, None)).await.unwrap_err();
}
