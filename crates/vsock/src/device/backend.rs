//! Where the emulator, the guest's rings and the clients meet: one thread, one
//! turn after each event.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{VhostUserBackendMut, VringMutex};
use vm_memory::GuestMemoryAtomic;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier};

use super::rings::{self, Memory, Scratch, Turn};
use super::switch::Switch;
use crate::Error;

/// `VIRTIO_F_VERSION_1` of virtio 1.2, section 6.
const FEATURE_VERSION_1: u64 = 1 << 32;
/// `VIRTIO_F_EVENT_IDX`: either side is woken only when it waits.
const FEATURE_EVENT_INDEX: u64 = 1 << 29;
/// Its rings, by number: the guest's room, what it sends, and one for events that
/// only a migration has.
const RING_TO_GUEST: usize = 0;
const RING_FROM_GUEST: usize = 1;
const RINGS: usize = 3;
/// The most chains that a ring may have.
const RING_LIMIT: usize = 1024;
/// What [`VhostUserBackendMut::handle_event`] is called with for everything that is
/// no ring. The library keeps one number for itself.
pub(crate) const CLIENTS: u16 = RINGS as u16 + 1;

/// What the host's events are known by; below all ports of streams.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
const AGAIN: u64 = 2;
/// How many events are handled in one turn.
const EVENTS_PER_TURN: usize = 64;
/// How often is looked for what has been waited for too long.
const TICK: Duration = Duration::from_secs(1);

/// The device.
pub(crate) struct Backend {
    config: [u8; 8],
    memory: Memory,
    switch: Switch,
    scratch: Scratch,
    clients: UnixListener,
    /// Whether `clients` is watched: not while the process is out of descriptors.
    accepts: bool,
    timer: OwnedFd,
    ticks: bool,
    /// Wakes this thread: there is more to do than one turn takes.
    again: OwnedFd,
    /// A ring made no sense. The machine has no channel until its driver starts anew.
    broken: bool,
    exit: (EventConsumer, EventNotifier),
    /// Set when the end of the library's thread is wanted.
    pub(crate) leaving: Arc<AtomicBool>,
}

impl Backend {
    /// A device for a guest with this address, which serves `clients`.
    pub(crate) fn new(
        guest_cid: u32,
        streams: usize,
        clients: UnixListener,
        memory: Memory,
    ) -> Result<Self, Error> {
        let setup = |step| move |source: rustix::io::Errno| Error::Setup { step, source: source.into() };
        let io_setup = |step| move |source: io::Error| Error::Setup { step, source };
        clients.set_nonblocking(true).map_err(io_setup("make the clients' socket non-blocking"))?;
        let poll = epoll::create(CreateFlags::CLOEXEC).map_err(setup("make an epoll instance"))?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(setup("make a timer"))?;
        let again = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(setup("make an event descriptor"))?;
        epoll::add(&poll, &clients, EventData::new_u64(LISTENER), EventFlags::IN)
            .and_then(|()| epoll::add(&poll, &timer, EventData::new_u64(TIMER), EventFlags::IN))
            .and_then(|()| epoll::add(&poll, &again, EventData::new_u64(AGAIN), EventFlags::IN))
            .map_err(setup("watch the clients' socket"))?;
        let exit = new_event_consumer_and_notifier(EventFlag::NONBLOCK | EventFlag::CLOEXEC)
            .map_err(io_setup("make an event descriptor"))?;
        Ok(Self {
            config: u64::from(guest_cid).to_le_bytes(),
            memory,
            switch: Switch::new(guest_cid, streams, poll),
            scratch: Scratch::new(),
            clients,
            accepts: true,
            timer,
            ticks: false,
            again,
            broken: false,
            exit,
            leaving: Arc::new(AtomicBool::new(false)),
        })
    }

    /// What tells of everything that is no ring.
    pub(crate) fn events(&self) -> i32 {
        self.switch.poll().as_raw_fd()
    }

    /// Nobody serves the clients any more.
    pub(crate) fn end(&mut self) {
        self.switch.clear();
    }

    fn clients_events(&mut self, now: Instant) {
        let none = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [none; EVENTS_PER_TURN];
        let nothing_to_wait_for = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Interrupted, it is called again: the events are still there.
        let count = epoll::wait(self.switch.poll(), &mut events, Some(&nothing_to_wait_for)).unwrap_or(0);
        for event in &events[..count] {
            match event.data.u64() {
                LISTENER => self.accept(now),
                TIMER => self.tick(now),
                AGAIN => {
                    let _ = rustix::io::read(&self.again, &mut [0; 8]);
                }
                port => {
                    if let Ok(port) = u32::try_from(port) {
                        self.switch.on_socket(port, event.flags, now);
                    }
                }
            }
        }
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..EVENTS_PER_TURN {
            match self.clients.accept() {
                // One that is refused has been told so.
                Ok((client, _)) => drop(self.switch.accept(client, now)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    // Out of descriptors: those that wait would wake this thread for
                    // ever. The next tick tries again.
                    self.watch_clients(false);
                    return;
                }
            }
        }
    }

    fn watch_clients(&mut self, watch: bool) {
        let flags = if watch { EventFlags::IN } else { EventFlags::empty() };
        if epoll::modify(self.switch.poll(), &self.clients, EventData::new_u64(LISTENER), flags).is_ok() {
            self.accepts = watch;
        }
    }

    fn tick(&mut self, now: Instant) {
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        self.switch.expire(now);
        if !self.accepts {
            self.watch_clients(true);
        }
    }

    /// Lets the timer run while something has a deadline. An idle device sleeps.
    fn set_timer(&mut self) {
        let ticks = !self.accepts || self.switch.has_deadlines();
        if ticks == self.ticks {
            return;
        }
        let interval = if ticks { TICK } else { Duration::ZERO };
        let interval = Timespec { tv_sec: i64::try_from(interval.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
        let value = Itimerspec { it_interval: interval, it_value: interval };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value).is_ok() {
            self.ticks = ticks;
        }
    }

    fn rings(&mut self, rings: &[VringMutex], now: Instant) {
        let (Some(to_guest), Some(from_guest)) = (rings.get(RING_TO_GUEST), rings.get(RING_FROM_GUEST))
        else {
            return;
        };
        if self.broken {
            return;
        }
        let taken = rings::take(from_guest, &self.memory, &mut self.switch, &mut self.scratch);
        let given = rings::give(to_guest, &self.memory, &mut self.switch, &mut self.scratch, now);
        if taken == Turn::Broken || given == Turn::Broken {
            self.broken = true;
            self.switch.clear();
        } else if taken == Turn::More || given == Turn::More {
            let _ = rustix::io::write(&self.again, &1_u64.to_ne_bytes());
        }
    }
}

impl VhostUserBackendMut for Backend {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        RINGS
    }

    fn max_queue_size(&self) -> usize {
        RING_LIMIT
    }

    fn features(&self) -> u64 {
        FEATURE_VERSION_1 | FEATURE_EVENT_INDEX | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG
    }

    fn set_event_idx(&mut self, _enabled: bool) {
        // The rings know.
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let range = offset as usize..(offset as usize).saturating_add(size as usize);
        self.config.get(range).unwrap_or_default().to_vec()
    }

    fn update_memory(&mut self, memory: GuestMemoryAtomic<vm_memory::GuestMemoryMmap>) -> io::Result<()> {
        self.memory = memory;
        Ok(())
    }

    fn reset_device(&mut self) {
        self.switch.clear();
        self.broken = false;
    }

    fn stop_vring(&mut self, _ring: u32) -> io::Result<()> {
        // The guest was reset: it knows none of its streams any more.
        self.reset_device();
        Ok(())
    }

    fn exit_event(&self, _thread: usize) -> Option<(EventConsumer, EventNotifier)> {
        Some((self.exit.0.try_clone().ok()?, self.exit.1.try_clone().ok()?))
    }

    /// Never an error: it would end the thread that calls.
    fn handle_event(
        &mut self,
        event: u16,
        _flags: EventSet,
        rings: &[VringMutex],
        _thread: usize,
    ) -> io::Result<()> {
        guard_thread(&self.leaving);
        let now = Instant::now();
        if event == CLIENTS {
            self.clients_events(now);
        }
        self.rings(rings, now);
        self.set_timer();
        Ok(())
    }
}

/// Ends the process with the thread that calls, which the library ends without a
/// word when a system call fails: a device that does nothing must not look alive.
fn guard_thread(leaving: &Arc<AtomicBool>) {
    struct Guard(Arc<AtomicBool>);
    impl Drop for Guard {
        fn drop(&mut self) {
            if !self.0.load(Ordering::Acquire) {
                std::process::abort();
            }
        }
    }
    thread_local! {
        static GUARD: std::cell::RefCell<Option<Guard>> = const { std::cell::RefCell::new(None) };
    }
    GUARD.with_borrow_mut(|guard| {
        guard.get_or_insert_with(|| Guard(leaving.clone()));
    });
}
