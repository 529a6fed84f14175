//! Commands about networks (`Sources/ContainerCommands/Network`).

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Client, MINUTE, output};
use crate::arguments::Matches;
use crate::error::{Code, Failure, Problem};
use crate::protocol::{Answer, Request};
use crate::resources::{Network, NetworkConfiguration, now};
use crate::settings::Release;
use crate::{shape, values};

fn all(client: &Client) -> Result<Vec<Network>, Problem> {
    match client.ask(&Request::NetworkList, MINUTE)? {
        Answer::Networks(networks) => Ok(networks),
        _ => Err(Problem::internal("no networks")),
    }
}

fn valid_name(name: &str) -> bool {
    let alphanumeric = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
    (1..=63).contains(&name.len())
        && name.starts_with(alphanumeric)
        && name.ends_with(alphanumeric)
        && name.chars().all(|letter| alphanumeric(letter) || "._-".contains(letter))
}

pub(super) fn create(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let name = matches.positional(0);
    if !valid_name(name) {
        return Err(Problem::invalid(format!("invalid network name: {name}")).into());
    }
    let configuration = NetworkConfiguration {
        name: name.to_owned(),
        creation_date: now(),
        mode: if matches.flag("internal") { "hostOnly" } else { "nat" }.to_owned(),
        ipv4_subnet: matches.one("subnet").map(str::to_owned),
        ipv6_subnet: matches.one("subnet-v6").map(str::to_owned),
        labels: values::pairs(matches.all("label")),
        plugin: matches.one("plugin").unwrap_or("container-network-vmnet").to_owned(),
        options: values::pairs(matches.all("option")),
    };
    client.ask(&Request::NetworkCreate { configuration }, MINUTE)?;
    Ok(output::line(name)?)
}

pub(super) fn delete(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let names: BTreeSet<&str> = matches.positionals().iter().map(String::as_str).collect();
    match (names.is_empty(), matches.flag("all")) {
        (true, false) => {
            return Err(Problem::invalid("no networks specified and --all not supplied").into());
        }
        (false, true) => {
            let message = "explicitly supplied network name(s) conflict with the --all flag";
            return Err(Problem::invalid(message).into());
        }
        (_, _) => {}
    }
    let all = all(client)?;
    let wanted: Vec<&Network> = if matches.flag("all") {
        all.iter().filter(|network| !network.is_builtin()).collect()
    } else {
        all.iter().filter(|network| names.contains(network.id.as_str())).collect()
    };
    if let Some(builtin) = wanted.iter().find(|network| network.is_builtin()) {
        return Err(Problem::invalid(format!("cannot delete a builtin network: {}", builtin.id)).into());
    }
    if !matches.flag("all") && wanted.len() != names.len() {
        let missing: Vec<&&str> =
            names.iter().filter(|name| !wanted.iter().any(|network| network.id == **name)).collect();
        let message = format!("failed to delete one or more networks: {missing:?}");
        return Err(Problem::new(Code::NotFound, message).into());
    }
    let mut failed = Vec::new();
    for network in wanted {
        match client.ask(&Request::NetworkDelete { id: network.id.clone() }, MINUTE) {
            Ok(_) => output::line(&network.id)?,
            Err(_) => failed.push(network.id.clone()),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Problem::internal(format!("delete failed for one or more networks: {failed:?}")).into())
}

pub(super) fn list(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let networks = all(client)?;
    let payload: Value = networks.iter().map(|network| shape::network(network, client.release())).collect();
    Ok(output::render(matches, &payload, || {
        let rows =
            networks.iter().map(|network| vec![network.id.clone(), network.status.ipv4_subnet.clone()]);
        output::listed(matches, &["NETWORK", "SUBNET"], rows.collect())
    })?)
}

pub(super) fn inspect(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let wanted: BTreeSet<&String> = matches.positionals().iter().collect();
    let found: Vec<Network> =
        all(client)?.into_iter().filter(|network| wanted.contains(&network.id)).collect();
    let old = client.release() < Release::V1_0_0;
    if found.len() != wanted.len() && !old {
        let known: BTreeSet<&String> = found.iter().map(|network| &network.id).collect();
        let missing: Vec<&str> = wanted.difference(&known).map(|name| name.as_str()).collect();
        let message = format!("network not found: {}", missing.join(", "));
        return Err(Problem::new(Code::NotFound, message).into());
    }
    let payload: Value = found.iter().map(|network| shape::network(network, client.release())).collect();
    Ok(output::line(&shape::inspected(&payload, client.release()))?)
}
