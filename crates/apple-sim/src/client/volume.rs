//! Commands about volumes (`Sources/ContainerCommands/Volume`).

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Client, output};
use crate::arguments::Matches;
use crate::error::{Code, Failure, Problem};
use crate::protocol::{Answer, Request};
use crate::resources::{Volume, now};
use crate::{shape, swift_json, values};

/// The size of a volume if nothing else is said, in bytes.
const SIZE: u64 = 512 << 30;

fn all(client: &Client) -> Result<Vec<Volume>, Problem> {
    match client.ask(&Request::VolumeList, None)? {
        Answer::Volumes(volumes) => Ok(volumes),
        _ => Err(Problem::internal("no volumes")),
    }
}

/// Has a volume made.
pub(super) fn make(
    client: &Client,
    name: &str,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
    size: Option<u64>,
) -> Result<Volume, Problem> {
    if !values::valid_volume_name(name) {
        return Err(Problem::invalid(format!("invalid volume name '{name}'")));
    }
    let volume = Volume {
        name: name.to_owned(),
        driver: "local".to_owned(),
        format: "ext4".to_owned(),
        source: String::new(),
        creation_date: now(),
        labels,
        options,
        size_in_bytes: Some(size.unwrap_or(SIZE)),
    };
    match client.ask(&Request::VolumeCreate { volume }, None)? {
        Answer::Volumes(made) => made.into_iter().next().ok_or_else(|| Problem::internal("no volume")),
        _ => Err(Problem::internal("no volume")),
    }
}

pub(super) fn create(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let name = matches.positional(0);
    let size = matches.one("size").map(values::bytes).transpose()?;
    let (labels, options) = (values::pairs(matches.all("label")), values::pairs(matches.all("opt")));
    make(client, name, labels, options, size)?;
    Ok(output::line(name)?)
}

pub(super) fn delete(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let names = matches.positionals();
    match (names.is_empty(), matches.flag("all")) {
        (true, false) => return Err(Problem::invalid("no volumes specified and --all not supplied").into()),
        (false, true) => {
            let message = "explicitly supplied volume name(s) conflict with the --all flag";
            return Err(Problem::invalid(message).into());
        }
        (_, _) => {}
    }
    let wanted: Vec<String> = if matches.flag("all") {
        all(client)?.into_iter().map(|volume| volume.name).collect()
    } else {
        names.to_vec()
    };
    let mut failed = Vec::new();
    for name in wanted {
        match client.ask(&Request::VolumeDelete { name: name.clone() }, None) {
            Ok(_) => output::line(&name)?,
            Err(_) => failed.push(name),
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(Problem::internal(format!("delete failed for one or more volumes: {failed:?}")).into())
}

pub(super) fn list(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let volumes = all(client)?;
    let payload: Value = volumes.iter().map(|volume| shape::volume(volume, client.release())).collect();
    Ok(output::render(matches, &payload, || {
        let rows = volumes.iter().map(|volume| {
            vec![volume.name.clone(), "named".to_owned(), volume.driver.clone(), String::new()]
        });
        output::listed(matches, &["NAME", "TYPE", "DRIVER", "OPTIONS"], rows.collect())
    })?)
}

pub(super) fn inspect(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let all = all(client)?;
    let mut found = Vec::new();
    for name in matches.positionals() {
        let volume = all
            .iter()
            .find(|volume| volume.name == *name)
            .ok_or_else(|| Problem::new(Code::NotFound, format!("volume not found: {name}")))?;
        found.push(shape::volume(volume, client.release()));
    }
    Ok(output::line(&swift_json::pretty(&Value::Array(found)))?)
}
