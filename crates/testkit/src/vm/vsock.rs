//! Byte streams to a guest through the host socket of a `kina-vsock`.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use kina_guest_api::{Connect, GuestStream};
use kina_vsock::Address;

/// How long a caller waits for the answer: the guest's kernel gives it.
const PATIENCE: Duration = Duration::from_secs(4);

/// Dials a port of a machine.
#[derive(Clone, Debug)]
pub struct VsockConnector {
    address: Address,
}

impl VsockConnector {
    /// A connector for a port behind the device's socket.
    pub fn new(socket: impl Into<PathBuf>, port: u32) -> Self {
        Self { address: Address::Unix { socket: socket.into(), port } }
    }
}

#[async_trait]
impl Connect for VsockConnector {
    async fn connect(&self) -> io::Result<Box<dyn GuestStream>> {
        let stream =
            kina_vsock::connect(&self.address, PATIENCE).await.map_err(kina_vsock::Error::into_io)?;
        Ok(Box::new(stream))
    }
}
