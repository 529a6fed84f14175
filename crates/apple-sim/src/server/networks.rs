//! Networks (`NetworksService.swift`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use super::locked;
use crate::error::{Code, Problem};
use crate::place::Place;
use crate::protocol::NetworkRequest;
use crate::resources::{Network, NetworkConfiguration, NetworkStatus, ROLE, Snapshot, Subnet, now};
use crate::vmnet;

/// The network that is always there.
const DEFAULT: &str = "default";
const PLUGIN: &str = "container-network-vmnet";

/// All networks.
pub(super) struct Networks {
    all: Mutex<BTreeMap<String, Network>>,
}

impl Networks {
    /// Those that were defined, and the one that always is. Their bridges are made.
    pub(super) fn load(place: &Place) -> Result<Self, Problem> {
        let networks = Self { all: Mutex::new(BTreeMap::new()) };
        fs::create_dir_all(place.networks())?;
        let mut configurations: Vec<NetworkConfiguration> = Vec::new();
        for entry in fs::read_dir(place.networks())? {
            configurations.push(serde_json::from_slice(&fs::read(entry?.path())?)?);
        }
        if !configurations.iter().any(|configuration| configuration.name == DEFAULT) {
            let default = NetworkConfiguration {
                name: DEFAULT.to_owned(),
                creation_date: now(),
                mode: "nat".to_owned(),
                ipv4_subnet: None,
                ipv6_subnet: None,
                labels: BTreeMap::from([(ROLE.0.to_owned(), ROLE.1.to_owned())]),
                plugin: PLUGIN.to_owned(),
                options: BTreeMap::new(),
            };
            write(place, &default)?;
            configurations.push(default);
        }
        // First those that say where they are, then the default one: others take what is left.
        configurations.sort_by_key(|one| (one.ipv4_subnet.is_none(), one.name != DEFAULT, one.name.clone()));
        let keeper = vmnet::start(place)?;
        for configuration in configurations {
            networks.start(&keeper, configuration)?;
        }
        Ok(networks)
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<Network> {
        locked(&self.all).values().cloned().collect()
    }

    /// The IPv6 prefixes of those that have any.
    pub(super) fn ipv6_prefixes(&self) -> BTreeMap<String, String> {
        let prefix = |network: &Network| Some((network.id.clone(), network.status.ipv6_subnet.clone()?));
        locked(&self.all).values().filter_map(prefix).collect()
    }

    /// Makes one.
    pub(super) fn create(
        &self,
        place: &Place,
        configuration: NetworkConfiguration,
    ) -> Result<Network, Problem> {
        let name = &configuration.name;
        if name == "none" {
            let message = format!("network {name} is not a valid name");
            return Err(Problem::new(Code::Unsupported, message));
        }
        if locked(&self.all).contains_key(name) {
            return Err(Problem::new(Code::Exists, format!("network {name} already exists")));
        }
        if configuration.plugin != PLUGIN {
            let message = format!("unable to locate network plugin {}", configuration.plugin);
            return Err(Problem::new(Code::NotFound, message));
        }
        let network = self.start(&vmnet::connect(place)?, configuration)?;
        write(place, &network.configuration)?;
        Ok(network)
    }

    fn start(&self, keeper: &UnixStream, configuration: NetworkConfiguration) -> Result<Network, Problem> {
        let mut all = locked(&self.all);
        let subnet = match &configuration.ipv4_subnet {
            Some(subnet) => Subnet::parse(subnet)?,
            None => free_subnet(&all)?,
        };
        let third = subnet.first.octets()[2];
        let network = Network {
            id: configuration.name.clone(),
            status: NetworkStatus {
                ipv4_subnet: subnet.to_string(),
                ipv4_gateway: subnet.address(1).to_string(),
                ipv6_subnet: Some(
                    configuration
                        .ipv6_subnet
                        .clone()
                        .unwrap_or_else(|| format!("fd12:3456:789a:{third:x}::/64")),
                ),
            },
            configuration,
        };
        let request =
            NetworkRequest::Start { network: network.id.clone(), subnet: network.status.ipv4_subnet.clone() };
        vmnet::ask(keeper, &request)?;
        all.insert(network.id.clone(), network.clone());
        Ok(network)
    }

    /// Deletes one that nothing uses.
    pub(super) fn delete(&self, place: &Place, id: &str, containers: &[Snapshot]) -> Result<(), Problem> {
        let mut all = locked(&self.all);
        if !all.contains_key(id) {
            return Err(Problem::new(Code::NotFound, format!("no network for id {id}")));
        }
        let used = |container: &&Snapshot| {
            container.configuration.networks.iter().any(|network| network.network == id)
        };
        let users: Vec<&str> =
            containers.iter().filter(used).map(|container| container.configuration.id.as_str()).collect();
        if !users.is_empty() {
            let message =
                format!("cannot delete subnet {id} with referring containers: {}", users.join(", "));
            return Err(Problem::new(Code::InvalidState, message));
        }
        vmnet::ask(&vmnet::connect(place)?, &NetworkRequest::Stop { network: id.to_owned() })?;
        fs::remove_file(place.networks().join(format!("{id}.json")))?;
        all.remove(id);
        Ok(())
    }
}

fn write(place: &Place, configuration: &NetworkConfiguration) -> Result<(), Problem> {
    let file = place.networks().join(format!("{}.json", configuration.name));
    Ok(fs::write(file, serde_json::to_vec(configuration)?)?)
}

/// The first subnet of macOS' range that no network has.
fn free_subnet(all: &BTreeMap<String, Network>) -> Result<Subnet, Problem> {
    (64..=254)
        .map(|third| format!("192.168.{third}.0/24"))
        .find(|subnet| all.values().all(|network| network.status.ipv4_subnet != *subnet))
        .ok_or_else(|| Problem::internal("no subnet is free"))
        .and_then(|subnet| Subnet::parse(&subnet))
}
