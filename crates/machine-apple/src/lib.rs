//! The machine driver that has Apple's `container` command boot a virtual machine
//! for every pod, with `kina-guest` as the first process of its only container.
//!
//! ```text
//! <pods>/<pod id>/machine/apple.json   the driver's record; the machine exists while it does
//!                         console.log  its last words, once it has ended
//! <sockets>/<pod id>.sock              where streams to the guest begin; Apple's, while it runs
//! <storage>/layers/                    hard links of the pod's layer images
//! ```
//!
//! **What is Apple's.** One `container run --detach` for each pod. A service of
//! launchd (the apiserver) keeps a list of containers and boots one at a time; a
//! process for each machine holds it, its network and its socket. That process
//! outlives this daemon and the apiserver. The list is not to be trusted: an
//! apiserver that was started anew calls every container stopped. So a guest that
//! answers on its socket runs, whatever the list says.
//!
//! **Streams.** The guest listens on a socket in the root of its container, which
//! Apple publishes as one on the Mac. It is not touched before `run` has returned:
//! a connection that fails before ends the relay for good. A relay that has ended
//! (the socket is gone, the machine runs) is gone around: `container exec` runs
//! `kina-guest relay`, one for each stream.
//!
//! **Shares.** Apple decides at boot what a machine sees. One directory for each pod
//! takes hard links of its layers as containers are made; it is read-only, since
//! other pods use the same files. Of other directories a machine sees those that it
//! was created with, and volumes are parts of them.
//!
//! **Order.** Boots wait for each other in the order in which they were asked for,
//! and let machines that are ending go first. A stop takes its own machine's boot
//! out of the queue, or ends it. Nothing else waits for boots.
//!
//! **Daemons come and go.** A record says what was begun before it is. A machine
//! whose boot was under way counts as created, and what there is of it is deleted
//! before it is booted. Machines without a record are known by their labels.
//!
//! **Ends.** Ending a machine is deleting its container: `stop` does nothing to
//! one that the list calls stopped, `delete` ends the process that holds it.
//!
//! **Time.** Deadlines are of the monotonic clock, which stands while a Mac sleeps,
//! so that no call fails because of that. The guest's clock stands too, and is set
//! with the next handshake.

mod command;
mod config;
mod driver;
mod error;
mod greeting;
mod pod_image;
mod version;

use std::sync::Arc;

use kina_machine::Driver;
use kina_node::Node;

pub use config::{AppleConfig, Unavailable};
pub use driver::AppleDriver;
pub use error::Error;
pub use version::Version;

/// The driver; see [`AppleDriver::open`].
///
/// # Errors
/// When something is missing, in words for the user.
pub async fn open(node: Arc<dyn Node>, config: AppleConfig) -> Result<Arc<dyn Driver>, Unavailable> {
    Ok(Arc::new(AppleDriver::open(node, config).await?))
}
