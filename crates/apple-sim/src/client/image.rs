//! Commands about images (`Sources/ContainerCommands/Image`).

use std::io::{self, Write};
use std::path::Path;

use serde_json::Value;

use super::{Client, TEN_SECONDS, configure, output};
use crate::arguments::Matches;
use crate::error::{Code, Failure, Problem};
use crate::images::{Images, normalize};
use crate::protocol::{Answer, Request};
use crate::resources::ImageDescription;
use crate::settings::Release;
use crate::{shape, values};

fn all(client: &Client) -> Result<Vec<ImageDescription>, Problem> {
    match client.ask(&Request::ImageList, None)? {
        Answer::Images(images) => Ok(images),
        _ => Err(Problem::internal("no images")),
    }
}

/// The images of some names, and the names that are of none.
fn named(client: &Client, names: &[String]) -> Result<(Vec<ImageDescription>, Vec<String>), Problem> {
    let images = all(client)?;
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        let normalized = normalize(name).unwrap_or_default();
        match images.iter().find(|image| image.reference == *name || image.reference == normalized) {
            Some(image) => found.push(image.clone()),
            None => missing.push(name.clone()),
        }
    }
    Ok((found, missing))
}

pub(super) fn list(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    if matches.flag("quiet") && matches.flag("verbose") {
        return Err(Problem::invalid("cannot use flag --quiet and --verbose together").into());
    }
    let store = Images::new(&client.place.root);
    let mut items = Vec::new();
    let mut rows = Vec::new();
    for image in all(client)? {
        let variants = store.variants(&image)?;
        items.push(shape::listed_image(&image, &variants, client.release()));
        let shown = short(&image.reference);
        let (name, tag) = shown.rsplit_once(':').unwrap_or((&shown, "<none>"));
        let digest = image.descriptor.digest.split(':').next_back().unwrap_or_default();
        let digest = digest.get(..12).unwrap_or(digest).to_owned();
        rows.push(vec![name.to_owned(), tag.to_owned(), digest]);
    }
    if matches.flag("quiet") {
        let names: Vec<String> = all(client)?.iter().map(|image| short(&image.reference)).collect();
        return Ok(output::line(&names.join("\n"))?);
    }
    let payload = Value::Array(items);
    Ok(output::render(matches, &payload, || output::listed(matches, &["NAME", "TAG", "DIGEST"], rows))?)
}

/// Without the registry that is the default (`denormalizeReference`).
fn short(reference: &str) -> String {
    let path = reference.strip_prefix("docker.io/").unwrap_or(reference);
    path.strip_prefix("library/").unwrap_or(path).to_owned()
}

pub(super) fn inspect(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    let (found, mut missing) = named(client, matches.positionals())?;
    missing.sort();
    missing.dedup();
    let release = client.release();
    let old = release < Release::V1_0_0;
    if !missing.is_empty() && !old {
        let message = format!("image not found: {}", missing.join(", "));
        return Err(Problem::new(Code::NotFound, message).into());
    }
    let store = Images::new(&client.place.root);
    let items: Vec<Value> = found
        .iter()
        .map(|image| Ok(shape::image(image, &store.variants(image)?, release)))
        .collect::<Result<_, Problem>>()?;
    let printed = !items.is_empty() || !old;
    let payload = Value::Array(items);
    if printed {
        output::line(&shape::inspected(&payload, client.release()))?;
    }
    if missing.is_empty() {
        return Ok(());
    }
    for name in &missing {
        let line = format!("image inspect failed [name={name} error=Image not found]");
        writeln!(io::stderr(), "{line}")?;
    }
    let failed: Vec<String> =
        missing.iter().map(|name| format!("(\"{name}\", notFound: \"Image not found\")")).collect();
    let succeeded: Vec<&str> = found.iter().map(|image| image.reference.as_str()).collect();
    Err(Failure::Plain(format!("InspectError(succeeded: {succeeded:?}, failed: [{}])", failed.join(", "))))
}

pub(super) fn load(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let mut temporary = None;
    let path = match matches.one("input") {
        Some(path) => {
            let path = values::absolute(path);
            if !path.exists() {
                // Without a word.
                return Err(Failure::Exit(1));
            }
            path
        }
        None => {
            let path = std::env::temp_dir().join(format!("{}.tar", configure::generated_name()?));
            let mut file = std::fs::File::create(&path)?;
            temporary = Some(path.clone());
            io::copy(&mut io::stdin(), &mut file)?;
            path
        }
    };
    let loaded = ask_to_load(client, &path);
    if let Some(temporary) = temporary {
        drop(std::fs::remove_file(temporary));
    }
    for image in loaded? {
        output::line(&image.reference)?;
    }
    Ok(())
}

fn ask_to_load(client: &Client, path: &Path) -> Result<Vec<ImageDescription>, Problem> {
    match client.ask(&Request::ImageLoad { path: path.to_string_lossy().into_owned() }, None)? {
        Answer::Images(images) => Ok(images),
        _ => Err(Problem::internal("no images")),
    }
}

pub(super) fn pull(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    configure::platform(matches)?;
    configure::check_scheme(matches)?;
    let reference = normalize(matches.positional(0))?;
    client.ask(&Request::ImagePull { reference: reference.clone() }, None)?;
    Ok(output::line(&reference)?)
}

pub(super) fn delete(client: &Client, matches: &Matches) -> Result<(), Failure> {
    let names = matches.positionals();
    match (names.is_empty(), matches.flag("all")) {
        (true, false) => return Err(Problem::invalid("no images specified and --all not supplied").into()),
        (false, true) => {
            let message = "explicitly supplied images conflict with the --all flag";
            return Err(Problem::invalid(message).into());
        }
        (_, _) => {}
    }
    client.ping(TEN_SECONDS)?;
    let (found, missing) =
        if matches.flag("all") { (all(client)?, Vec::new()) } else { named(client, names)? };
    for image in found {
        client.ask(&Request::ImageDelete { reference: image.reference.clone() }, None)?;
        output::line(&image.reference)?;
    }
    if missing.is_empty() || matches.flag("force") {
        return Ok(());
    }
    Err(Problem::internal(format!("failed to delete one or more images: {missing:?}")).into())
}

pub(super) fn tag(client: &Client, matches: &Matches) -> Result<(), Failure> {
    client.ping(TEN_SECONDS)?;
    let (source, target) = (matches.positional(0), matches.positional(1));
    let (found, _) = named(client, &[source.to_owned()])?;
    let Some(image) = found.into_iter().next() else {
        return Err(Problem::new(Code::NotFound, format!("image with reference {source}")).into());
    };
    client.ask(&Request::ImageTag { image, reference: normalize(target)? }, None)?;
    Ok(output::line(target)?)
}
