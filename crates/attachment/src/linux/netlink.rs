//! Questions and changes by route netlink, in one namespace.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::AsyncSocket;
use tokio::runtime::Handle as Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::namespace::Namespace;
use crate::{Error, Refusal};

/// How long the kernel may take for one answer. It holds one lock for all changes of
/// interfaces on the machine, so under load this is not instant.
const PATIENCE: Duration = Duration::from_secs(30);

/// The most messages that one answer may have.
const MOST: usize = 65_536;

/// A netlink socket in a namespace, driven by the caller's runtime.
pub(crate) struct Netlink {
    handle: rtnetlink::Handle,
    driver: JoinHandle<()>,
    namespace: PathBuf,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Netlink {
    /// Opens a socket in `namespace`. Only opening it needs a thread there: a socket
    /// stays in the namespace that it was made in.
    pub(crate) async fn open(namespace: &Namespace) -> Result<Self, Error> {
        let runtime = Runtime::current();
        let opened = namespace.run(move || {
            let _context = runtime.enter();
            let (mut connection, handle, _messages) = rtnetlink::new_connection()?;
            let socket = connection.socket_mut().socket_mut();
            // An old kernel says less; that is no reason to fail.
            let _ = socket.set_ext_ack(true);
            let _ = socket.set_cap_ack(true);
            Ok((connection, handle))
        });
        let path = namespace.path().to_path_buf();
        let (connection, handle) = opened.await?.map_err(|source: io::Error| Error::Kernel {
            operation: "open",
            object: "a netlink socket".to_owned(),
            namespace: path.clone(),
            source: source.into(),
        })?;
        Ok(Self { handle, driver: tokio::spawn(connection), namespace: path })
    }

    /// The namespace's path.
    pub(crate) fn namespace(&self) -> &Path {
        &self.namespace
    }

    /// Makes a change. `operation` and `object` are for the error.
    pub(crate) async fn change(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
        operation: &'static str,
        object: &str,
    ) -> Result<(), Error> {
        let answer = self.exchange(message, NLM_F_ACK | flags).await;
        answer.map(drop).map_err(|refusal| self.error(operation, object, refusal))
    }

    /// Asks for one thing. Nothing, if the kernel does not have it.
    pub(crate) async fn one(
        &self,
        message: RouteNetlinkMessage,
        operation: &'static str,
        object: &str,
    ) -> Result<Option<RouteNetlinkMessage>, Error> {
        match self.exchange(message, 0).await {
            Ok(mut answer) => Ok(answer.pop()),
            Err(refusal) if matches!(refusal.number(), Some(libc::ENODEV | libc::ENOENT)) => Ok(None),
            Err(refusal) => Err(self.error(operation, object, refusal)),
        }
    }

    /// Asks for all there is of a kind.
    pub(crate) async fn all(
        &self,
        message: RouteNetlinkMessage,
        operation: &'static str,
        object: &str,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        let answer = self.exchange(message, NLM_F_DUMP).await;
        answer.map_err(|refusal| self.error(operation, object, refusal))
    }

    pub(crate) fn error(&self, operation: &'static str, object: &str, source: Refusal) -> Error {
        Error::Kernel { operation, object: object.to_owned(), namespace: self.namespace.clone(), source }
    }

    async fn exchange(
        &self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Refusal> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | flags;
        let mut handle = self.handle.clone();
        let answer = async {
            let mut stream = handle.request(request).map_err(|_| closed("the netlink socket is closed"))?;
            let mut messages = Vec::new();
            while let Some(message) = stream.next().await {
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) if messages.len() < MOST => messages.push(inner),
                    NetlinkPayload::InnerMessage(_) => {
                        return Err(closed("the answer has more messages than can be"));
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(refusal(&error)),
                    NetlinkPayload::Overrun(_) => return Err(closed("the answer was cut short")),
                    _ => {}
                }
            }
            Ok(messages)
        };
        timeout(PATIENCE, answer).await.unwrap_or_else(|_| Err(closed("no answer within 30 seconds")))
    }
}

fn closed(problem: &'static str) -> Refusal {
    io::Error::other(problem).into()
}

fn refusal(error: &ErrorMessage) -> Refusal {
    Refusal::new(error.to_io(), words(&error.header))
}

/// The kernel's own words in a refusal that does not repeat the request: after the
/// request's header come attributes, of which number 1 is text
/// (`NLMSGERR_ATTR_MSG`).
pub(crate) fn words(refusal: &[u8]) -> Option<String> {
    const HEADER: usize = 16;
    const MESSAGE: u16 = 1;
    let mut rest = refusal.get(HEADER..)?;
    while rest.len() > 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let kind = u16::from_ne_bytes([rest[2], rest[3]]);
        let value = rest.get(4..length)?;
        if kind == MESSAGE {
            let text = String::from_utf8_lossy(value);
            return Some(text.trim_end_matches('\0').to_owned());
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
    None
}
