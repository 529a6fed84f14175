//! What pods and containers use: their guests are asked when somebody asks.
//!
//! Guests are asked side by side, and one that does not answer in time is left
//! out. Nothing is sampled in between: how busy a processor was is the mean
//! since the last time somebody asked, at least `RATE_SPAN` ago.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kina_guest_api::v1;
use kina_model::Nanos;

use crate::error::chain;
use crate::pod::PodHandle;
use crate::pod::view::PodView;

/// How long one guest may take; the kubelet gives a whole list two minutes.
const DEADLINE: Duration = Duration::from_secs(5);

/// Guests that are asked at a time.
const AT_A_TIME: usize = 32;

/// The least time over which processor time becomes a rate.
const RATE_SPAN: Nanos = 1_000_000_000;

/// Samples that nobody has asked for this long are forgotten.
const RATE_MEMORY: Nanos = 600_000_000_000;

/// Interfaces of one pod that are told. Bounds what a guest can have us tell.
const MAX_INTERFACES: usize = 64;

/// The longest name of an interface (IFNAMSIZ without its end).
const MAX_INTERFACE_NAME: usize = 15;

/// Block devices of one container that are told.
const MAX_BLOCK_DEVICES: usize = 64;

/// The longest name of a block device (DISK_NAME_LEN without its end).
const MAX_BLOCK_DEVICE_NAME: usize = 31;

/// Kernels know three sizes of huge pages at most.
const MAX_PAGE_SIZES: usize = 8;

/// A size is named as `1048576KB` at the longest.
const MAX_PAGE_SIZE_NAME: usize = 16;

/// A pod and what its guest says that it uses.
#[derive(Clone, Debug)]
pub struct PodUsage {
    /// The pod.
    pub pod: Arc<PodView>,
    /// `None` if its guest did not answer, or the pod is not ready.
    pub usage: Option<v1::StatsResponse>,
    /// Of the pod as a whole, in billionths of a processor.
    pub nano_cores: Option<u64>,
    /// Likewise of each container, by its id.
    pub container_nano_cores: HashMap<String, u64>,
}

impl PodUsage {
    /// What a container uses.
    #[must_use]
    pub fn container(&self, id: &str) -> Option<&v1::ContainerStats> {
        self.usage.as_ref()?.containers.iter().find(|stats| stats.id == id)
    }
}

/// Processor time as of the last questions, by pod's or container's id.
#[derive(Debug, Default)]
pub struct Rates {
    samples: Mutex<HashMap<String, Sample>>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Nanos,
    cpu_nanos: u64,
    rate: Option<u64>,
}

impl Rates {
    /// The mean use of processors since the last sample that is old enough, in
    /// billionths of one. `None` the first time.
    fn rate(&self, id: &str, usage: &v1::Usage) -> Option<u64> {
        let (at, cpu_nanos) = (usage.timestamp_nanos, usage.cpu_nanos?);
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let last = samples.get(id).copied();
        let rate = match last {
            // The clock or the counter went back: another machine, or a lie.
            Some(last) if at < last.at || cpu_nanos < last.cpu_nanos => None,
            Some(last) if at - last.at < RATE_SPAN => return last.rate,
            Some(last) => {
                let (used, span) = (u128::from(cpu_nanos - last.cpu_nanos), (at - last.at).unsigned_abs());
                u64::try_from(used * 1_000_000_000 / u128::from(span)).ok()
            }
            None => None,
        };
        samples.insert(id.to_owned(), Sample { at, cpu_nanos, rate });
        rate
    }

    /// Forgets what nobody asks for any more.
    fn forget(&self, now: Nanos) {
        let mut samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        samples.retain(|_, sample| (now - sample.at).abs() < RATE_MEMORY);
    }
}

/// Asks the guests of these pods. The answers are in the pods' order.
pub async fn collect(rates: &Rates, pods: Vec<(PodHandle, Arc<PodView>)>, now: Nanos) -> Vec<PodUsage> {
    rates.forget(now);
    let asked = pods.into_iter().map(|(handle, pod)| async move {
        let usage = match handle.guest() {
            Some(guest) => {
                let asked = guest.stats(v1::StatsRequest::default());
                match tokio::time::timeout(DEADLINE, asked).await {
                    Ok(Ok(usage)) => Some(plausible(usage, &pod)),
                    Ok(Err(error)) => {
                        tracing::debug!(pod = %pod.id, error = chain(&error), "its usage is not told");
                        None
                    }
                    Err(_) => {
                        tracing::warn!(pod = %pod.id, "its guest does not tell its usage in {DEADLINE:?}");
                        None
                    }
                }
            }
            None => None,
        };
        of_pod(rates, pod, usage)
    });
    futures::stream::iter(asked).buffered(AT_A_TIME).collect().await
}

fn of_pod(rates: &Rates, pod: Arc<PodView>, usage: Option<v1::StatsResponse>) -> PodUsage {
    let whole = usage.as_ref().and_then(|usage| usage.pod.as_ref());
    let nano_cores = whole.and_then(|whole| rates.rate(pod.id.as_str(), whole));
    let containers = usage.iter().flat_map(|usage| &usage.containers);
    let container_nano_cores = containers
        .filter_map(|stats| Some((stats.id.clone(), rates.rate(&stats.id, stats.usage.as_ref()?)?)))
        .collect();
    PodUsage { pod, usage, nano_cores, container_nano_cores }
}

/// Of a guest's answer what can be true: containers of this pod, interfaces and
/// block devices, each once, and not more of them than anybody has.
fn plausible(mut usage: v1::StatsResponse, pod: &PodView) -> v1::StatsResponse {
    let mut known: Vec<&str> = pod.containers.keys().map(|id| id.as_str()).collect();
    usage.containers.retain(|stats| {
        let place = known.iter().position(|id| *id == stats.id);
        place.map(|place| known.swap_remove(place)).is_some()
    });
    plausible_pages(&mut usage.huge_pages);
    usage.interfaces.truncate(MAX_INTERFACES);
    let mut names = HashSet::new();
    usage.interfaces.retain(|one| {
        !one.name.is_empty() && is_name(&one.name, MAX_INTERFACE_NAME) && names.insert(one.name.clone())
    });
    for container in &mut usage.containers {
        let devices = &mut container.block_devices;
        devices.truncate(MAX_BLOCK_DEVICES);
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        devices.retain(|one| {
            is_name(&one.name, MAX_BLOCK_DEVICE_NAME)
                && numbers.insert((one.major, one.minor))
                && (one.name.is_empty() || names.insert(one.name.clone()))
        });
        plausible_pages(&mut container.huge_pages);
    }
    usage
}

fn plausible_pages(pages: &mut Vec<v1::HugePages>) {
    pages.truncate(MAX_PAGE_SIZES);
    let mut sizes = HashSet::new();
    pages.retain(|one| {
        !one.page_size.is_empty()
            && is_name(&one.page_size, MAX_PAGE_SIZE_NAME)
            && sizes.insert(one.page_size.clone())
    });
}

fn is_name(name: &str, longest: usize) -> bool {
    name.len() <= longest && name.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kina_model::{ContainerId, ContainerState, PodId, PodState, Running};

    use super::*;
    use crate::pod::view::test_support;

    fn usage(seconds: f64, cpu_seconds: f64) -> v1::Usage {
        let nanos = |seconds: f64| (seconds * 1e9) as i64;
        v1::Usage {
            timestamp_nanos: nanos(seconds),
            cpu_nanos: Some(nanos(cpu_seconds).unsigned_abs()),
            ..v1::Usage::default()
        }
    }

    #[test]
    fn a_rate_is_a_mean() {
        let rates = Rates::default();
        assert_eq!(rates.rate("a", &usage(10.0, 1.0)), None);
        assert_eq!(rates.rate("a", &usage(10.5, 1.5)), None, "too soon");
        assert_eq!(rates.rate("a", &usage(12.0, 2.0)), Some(500_000_000));
        assert_eq!(rates.rate("a", &usage(12.5, 3.0)), Some(500_000_000), "too soon for another");
        assert_eq!(rates.rate("b", &usage(12.5, 3.0)), None);
        assert_eq!(rates.rate("a", &usage(14.0, 6.0)), Some(2_000_000_000));
        // A counter that went back begins anew, as does a clock.
        assert_eq!(rates.rate("a", &usage(16.0, 0.0)), None);
        assert_eq!(rates.rate("a", &usage(15.0, 9.0)), None);
        assert_eq!(rates.rate("a", &usage(17.0, 9.0)), Some(0));
        assert_eq!(rates.rate("a", &v1::Usage::default()), None);
        rates.forget(1_000_000_000_000);
        assert!(rates.samples.lock().unwrap().is_empty());
    }

    #[test]
    fn what_a_guest_makes_up_is_left_out() {
        let pod: PodId = "a".repeat(32).parse().unwrap();
        let id: ContainerId = "c".repeat(32).parse().unwrap();
        let state = ContainerState::Running(Running { started_at: 1 });
        let container = Arc::new(test_support::container(id.clone(), pod.clone(), state));
        let containers = BTreeMap::from([(id.clone(), container)]);
        let view = test_support::pod(pod, PodState::Starting, containers);
        let stats = |id: &str| v1::ContainerStats { id: id.to_owned(), ..v1::ContainerStats::default() };
        let interface =
            |name: &str| v1::InterfaceStats { name: name.to_owned(), ..v1::InterfaceStats::default() };
        let device = |name: &str, minor| v1::BlockDeviceStats {
            name: name.to_owned(),
            minor,
            ..v1::BlockDeviceStats::default()
        };
        let devices = [("vda", 0), ("vda", 1), ("vdb", 0), ("", 2), ("", 3), ("a b", 4)];
        let mut own = stats(id.as_str());
        own.block_devices = devices.map(|(name, minor)| device(name, minor)).to_vec();
        own.block_devices.push(device(&"x".repeat(32), 5));
        let pages = |size: &str| v1::HugePages { page_size: size.to_owned(), ..v1::HugePages::default() };
        own.huge_pages = ["2MB", "2MB", "", "1 GB", "a page of many bytes", "1GB"].map(pages).to_vec();
        own.huge_pages.extend((0..100).map(|number| pages(&format!("{number}KB"))));
        let mut answer = v1::StatsResponse {
            containers: vec![stats("other"), own, stats(id.as_str())],
            interfaces: vec![
                interface("eth0"),
                interface("eth0"),
                interface(""),
                interface("a b"),
                interface(&"x".repeat(16)),
            ],
            ..v1::StatsResponse::default()
        };
        let many = (0..1_000).map(|number| interface(&format!("e{number}")));
        answer.interfaces.extend(many);
        let answer = plausible(answer, &view);
        let containers: Vec<&str> = answer.containers.iter().map(|one| one.id.as_str()).collect();
        assert_eq!(containers, [id.as_str()]);
        let told = [device("vda", 0), device("", 2), device("", 3)];
        assert_eq!(answer.containers[0].block_devices, told);
        let sizes: Vec<&str> =
            answer.containers[0].huge_pages.iter().map(|one| one.page_size.as_str()).collect();
        assert_eq!(sizes, ["2MB", "1GB", "0KB", "1KB"]);
        assert_eq!(answer.interfaces.len(), MAX_INTERFACES - 4);
        assert_eq!(answer.interfaces[0].name, "eth0");
    }
}
