//! What a connection knows of one stream.

use std::task::Waker;

use bytes::BytesMut;

use crate::frame::ResetStatus;

/// The sending direction of a stream.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Sending {
    Open,
    /// Shut down; what is queued and the end are still to be written.
    Ending,
    Ended,
}

/// One stream.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) inbound: BytesMut,
    pub(crate) outbound: BytesMut,
    /// The peer will send no more.
    pub(crate) heard_all: bool,
    pub(crate) sending: Sending,
    /// The peer ended it at once.
    pub(crate) reset: Option<ResetStatus>,
    /// The peer has answered (streams opened here).
    pub(crate) replied: bool,
    /// Its handle is gone.
    pub(crate) abandoned: bool,
    /// It stands in `State::ready`.
    pub(crate) queued: bool,
    pub(crate) reader: Option<Waker>,
    pub(crate) writer: Option<Waker>,
}

impl Entry {
    pub(crate) fn new(heard_all: bool, sending: Sending) -> Self {
        Self {
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            heard_all,
            sending,
            reset: None,
            replied: false,
            abandoned: false,
            queued: false,
            reader: None,
            writer: None,
        }
    }

    pub(crate) fn wake_reader(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
    }

    pub(crate) fn wake(&mut self) {
        self.wake_reader();
        if let Some(waker) = self.writer.take() {
            waker.wake();
        }
    }
}
