//! The header of a vsock packet (virtio 1.2, section 5.10.6).

/// The length of a header in bytes.
pub(crate) const HEADER: usize = 44;
/// The host's address.
pub(crate) const HOST_CID: u64 = 2;
/// Byte streams with a connection (`VIRTIO_VSOCK_TYPE_STREAM`).
pub(crate) const TYPE_STREAM: u16 = 1;
/// In [`Header::flags`] of a shutdown: the sender will receive no more.
pub(crate) const SHUTDOWN_RECEIVE: u32 = 1;
/// In [`Header::flags`] of a shutdown: the sender will send no more.
pub(crate) const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub(crate) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for (`VIRTIO_VSOCK_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

impl Operation {
    fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    fn from_code(code: u16) -> Option<Self> {
        [
            Self::Request,
            Self::Response,
            Self::Reset,
            Self::Shutdown,
            Self::Data,
            Self::CreditUpdate,
            Self::CreditRequest,
        ]
        .into_iter()
        .find(|operation| operation.code() == code)
    }
}

/// A header. Numbers are the sender's claims: nothing is checked here but the
/// operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) source_cid: u64,
    pub(crate) destination_cid: u64,
    pub(crate) source_port: u32,
    pub(crate) destination_port: u32,
    /// Bytes of payload that follow.
    pub(crate) length: u32,
    pub(crate) kind: u16,
    /// `None` for a number that means nothing.
    pub(crate) operation: Option<Operation>,
    pub(crate) flags: u32,
    /// The sender's whole buffer for what it receives, in bytes.
    pub(crate) buffer: u32,
    /// How many bytes have left that buffer so far, modulo 2³².
    pub(crate) forwarded: u32,
}

impl Header {
    /// Reads a header.
    pub(crate) fn decode(bytes: &[u8; HEADER]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            source_cid: u64::from_le_bytes(fields.take()),
            destination_cid: u64::from_le_bytes(fields.take()),
            source_port: u32::from_le_bytes(fields.take()),
            destination_port: u32::from_le_bytes(fields.take()),
            length: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            operation: Operation::from_code(u16::from_le_bytes(fields.take())),
            flags: u32::from_le_bytes(fields.take()),
            buffer: u32::from_le_bytes(fields.take()),
            forwarded: u32::from_le_bytes(fields.take()),
        }
    }

    /// Writes a header; one without an operation with the number that means none.
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&self.source_cid.to_le_bytes());
        put(&self.destination_cid.to_le_bytes());
        put(&self.source_port.to_le_bytes());
        put(&self.destination_port.to_le_bytes());
        put(&self.length.to_le_bytes());
        put(&self.kind.to_le_bytes());
        put(&self.operation.map_or(0, Operation::code).to_le_bytes());
        put(&self.flags.to_le_bytes());
        put(&self.buffer.to_le_bytes());
        put(&self.forwarded.to_le_bytes());
        bytes
    }
}

/// The rest of a header that is being read.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next field. The fields of a header are as long as a header, so there
    /// always is one; past the end it would be zeros.
    fn take<const LENGTH: usize>(&mut self) -> [u8; LENGTH] {
        let Some((field, rest)) = self.0.split_first_chunk::<LENGTH>() else { return [0; LENGTH] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_lie_where_the_standard_has_them() {
        let bytes = Header {
            source_cid: 0x0102_0304_0506_0708,
            destination_cid: 2,
            source_port: 0x1112_1314,
            destination_port: 0x2122_2324,
            length: 0x3132_3334,
            kind: TYPE_STREAM,
            operation: Some(Operation::Shutdown),
            flags: SHUTDOWN_BOTH,
            buffer: 0x4142_4344,
            forwarded: 0x5152_5354,
        }
        .encode();
        assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(bytes[16..20], [0x14, 0x13, 0x12, 0x11]);
        assert_eq!(bytes[24..28], [0x34, 0x33, 0x32, 0x31]);
        assert_eq!(bytes[28..32], [1, 0, 4, 0]);
        assert_eq!(bytes[32..36], [3, 0, 0, 0]);
        assert_eq!(bytes[40..44], [0x54, 0x53, 0x52, 0x51]);
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(bytes: [u8; 32], more: [u8; 12]) {
            let mut whole = [0; HEADER];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&more);
            let header = Header::decode(&whole);
            if header.operation.is_none() {
                whole[30..32].fill(0);
            }
            prop_assert_eq!(header.encode(), whole);
        }
    }
}
