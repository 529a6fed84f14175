//! Calls that are answered with a URL.

use kina_model::SpecError;
use kina_streaming::Streams;

use super::runtime::Service;
use crate::cri::v1;
use crate::error::Error;

impl Service {
    pub(super) async fn exec(&self, request: v1::ExecRequest) -> Result<v1::ExecResponse, Error> {
        let v1::ExecRequest { container_id, cmd, tty, stdin, stdout, stderr } = request;
        if cmd.is_empty() {
            return Err(SpecError::invalid("cmd", "is empty; name a program").into());
        }
        let streams = Streams { stdin, stdout, stderr, tty };
        let url = self.streaming.exec(&container_id, cmd, streams)?;
        Ok(v1::ExecResponse { url })
    }

    pub(super) async fn attach(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse, Error> {
        let v1::AttachRequest { container_id, stdin, tty, stdout, stderr } = request;
        let url = self.streaming.attach(&container_id, Streams { stdin, stdout, stderr, tty })?;
        Ok(v1::AttachResponse { url })
    }

    pub(super) async fn port_forward(
        &self,
        request: v1::PortForwardRequest,
    ) -> Result<v1::PortForwardResponse, Error> {
        let v1::PortForwardRequest { pod_sandbox_id, port } = request;
        let port = port.into_iter().map(|port| {
            let number = u16::try_from(port).ok().filter(|port| *port > 0);
            number.ok_or_else(|| SpecError::invalid("port", format!("{port} is no port")))
        });
        let ports = port.collect::<Result<Vec<u16>, _>>()?;
        let url = self.streaming.port_forward(&pod_sandbox_id, ports)?;
        Ok(v1::PortForwardResponse { url })
    }
}
