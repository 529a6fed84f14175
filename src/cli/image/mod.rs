//! `kina image`: what the daemon does with images, asked through its socket.

mod keeping;
mod progress;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_stream::wrappers::ReceiverStream;

use super::text::{bytes, short, table};
use super::{UsageError, describe, print_error, print_line, socket};
use crate::admin::{CHUNK_LIMIT, v1};
use progress::{Display, layer_json};

/// Flags and what to do.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: socket::DaemonSocket,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring an image in from its registry.
    Pull(Pull),
    /// List the images.
    #[command(visible_alias = "list")]
    Ls {
        /// A JSON array, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Remove names; an image goes with its last name, or by its id.
    #[command(visible_alias = "remove")]
    Rm {
        /// Names, ids or beginnings of ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Give an image another name.
    Tag {
        /// A name, an id or the beginning of one.
        source: String,
        /// The new name; it is taken from the image that has it.
        target: String,
    },
    /// Print all about images, as JSON.
    Inspect {
        /// Names, ids or beginnings of ids.
        #[arg(required = true)]
        images: Vec<String>,
    },
    /// Show what images take of the disk.
    Du {
        /// A JSON object, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Remove images without a tag that no container uses, and what failed pulls
    /// have left.
    Prune(keeping::Prune),
    /// Compare the files of images with what they were; the exit code is 1 if one
    /// is damaged and not repaired.
    Verify(keeping::Verify),
    /// Read images from an archive: OCI, or what `docker save` writes.
    Import {
        /// The archive; `-` is standard input.
        file: PathBuf,
        /// The name that the image gets; needs an archive of one image.
        #[arg(long)]
        name: Option<String>,
    },
    /// Write an image as an OCI archive.
    Export {
        /// Its name, or its id or the beginning of it.
        image: String,
        /// The archive; `-` is standard output.
        file: PathBuf,
    },
}

/// Flags of `kina image pull`.
#[derive(Debug, clap::Args)]
struct Pull {
    /// For example docker.io/library/busybox:1.36.
    image: String,
    /// Shown to the registry; other users of this machine can read it in the
    /// list of processes, so better use --creds-file or the environment.
    #[arg(long, value_name = "USER:PASSWORD", env = "KINA_REGISTRY_CREDENTIALS", hide_env_values = true)]
    creds: Option<String>,
    /// A file with USER:PASSWORD in it; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "creds")]
    creds_file: Option<PathBuf>,
    /// Events as lines of JSON, for programs.
    #[arg(long)]
    json: bool,
}

/// The longest file with credentials that is read, in bytes.
const CREDENTIALS_LIMIT: u64 = 64 << 10;

/// Bytes of an archive sent at once.
const CHUNK: usize = CHUNK_LIMIT / 4;

/// Runs one of the commands.
pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    socket::block_on(async move {
        let Arguments { daemon, command } = arguments;
        match command {
            Command::Pull(pull) => self::pull(&daemon, pull).await,
            Command::Ls { json } => list(&daemon, json).await,
            Command::Rm { images } => remove(&daemon, images).await,
            Command::Tag { source, target } => keeping::tag(&daemon, source, target).await,
            Command::Inspect { images } => keeping::inspect(&daemon, images).await,
            Command::Du { json } => keeping::disk_use(&daemon, json).await,
            Command::Prune(prune) => keeping::prune(&daemon, &prune).await,
            Command::Verify(verify) => keeping::verify(&daemon, verify).await,
            Command::Import { file, name } => import(&daemon, &file, name).await,
            Command::Export { image, file } => export(&daemon, image, &file).await,
        }
    })
}

async fn pull(daemon: &socket::DaemonSocket, arguments: Pull) -> anyhow::Result<()> {
    let credentials = match (&arguments.creds, &arguments.creds_file) {
        (Some(text), _) => Some(credentials(text)?),
        (None, Some(file)) => Some(credentials(&read_credentials(file)?)?),
        (None, None) => None,
    };
    let mut client = daemon.connect().await?;
    let request = v1::PullImageRequest { reference: arguments.image, credentials };
    let mut events = client.admin.pull_image(request).await?.into_inner();
    let mut display = Display::new(std::io::stderr().is_terminal());
    while let Some(message) = events.message().await? {
        match message.event {
            Some(v1::pull_image_response::Event::Progress(progress)) if arguments.json => {
                let layers: Vec<Value> = progress.layers.iter().map(layer_json).collect();
                print_line(&json!({ "event": "progress", "layers": layers }).to_string())?;
            }
            Some(v1::pull_image_response::Event::Progress(progress)) => {
                write_progress(&display.update(&progress))?;
            }
            Some(v1::pull_image_response::Event::Image(image)) if arguments.json => {
                print_line(&json!({ "event": "image", "image": image_json(&image) }).to_string())?;
                return Ok(());
            }
            Some(v1::pull_image_response::Event::Image(image)) => {
                write_progress(&display.finish())?;
                print_line(&image.id)?;
                return Ok(());
            }
            None => {}
        }
    }
    bail!("the daemon ended the pull without a result");
}

/// Progress goes to standard error, so that standard output is the answer.
fn write_progress(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stderr().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

fn credentials(text: &str) -> anyhow::Result<v1::Credentials> {
    match text.trim_end_matches(['\n', '\r']).split_once(':') {
        Some((user, password)) if !user.is_empty() => {
            Ok(v1::Credentials { user: user.to_owned(), password: password.to_owned() })
        }
        // The text itself is not shown: it may be a password.
        _ => Err(UsageError("the credentials are not of the form USER:PASSWORD".to_owned()).into()),
    }
}

fn read_credentials(file: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let read = || format!("read the credentials in {}", file.display());
    let source: Box<dyn std::io::Read> = if file == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(file).with_context(read)?)
    };
    source.take(CREDENTIALS_LIMIT).read_to_string(&mut text).with_context(read)?;
    Ok(text)
}

async fn list(daemon: &socket::DaemonSocket, json: bool) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let images = client.admin.list_images(v1::ListImagesRequest {}).await?.into_inner().images;
    if json {
        let images: Vec<Value> = images.iter().map(image_json).collect();
        print_line(&serde_json::to_string_pretty(&images)?)?;
    } else {
        print_line(&image_table(&images))?;
    }
    Ok(())
}

async fn remove(daemon: &socket::DaemonSocket, images: Vec<String>) -> anyhow::Result<()> {
    let mut client = daemon.connect().await?;
    let mut failure = None;
    for name in images {
        let removed = client.admin.remove_image(v1::RemoveImageRequest { name: name.clone() }).await;
        match removed.with_context(|| format!("remove {name}")) {
            Ok(removed) => print_line(&removed_line(&name, removed.get_ref()))?,
            // The others go all the same; the last failure is the command's.
            Err(error) => failure.replace(error).iter().for_each(|error| print_error(&describe(error))),
        }
    }
    failure.map_or(Ok(()), Err)
}

fn removed_line(name: &str, removed: &v1::RemoveImageResponse) -> String {
    let id = short(&removed.id);
    match (removed.image_removed, removed.in_use) {
        (false, _) => format!("{name}: name removed; image {id} has others"),
        (true, false) => format!("{name}: image {id} removed"),
        (true, true) => format!("{name}: image {id} removed; its files go with the containers that use them"),
    }
}

async fn import(daemon: &socket::DaemonSocket, file: &Path, name: Option<String>) -> anyhow::Result<()> {
    let read = || format!("read {}", file.display());
    let archive: Box<dyn tokio::io::AsyncRead + Unpin + Send> = if file == Path::new("-") {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(tokio::fs::File::open(file).await.with_context(read)?)
    };
    let mut client = daemon.connect().await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(2);
    let mut call = std::pin::pin!(client.admin.import_image(ReceiverStream::new(receiver)));
    let mut send = std::pin::pin!(send_archive(archive, name.unwrap_or_default(), sender));
    let answer = tokio::select! {
        answer = &mut call => answer,
        sent = &mut send => {
            // A call that is dropped is cancelled: half an archive is none.
            sent.with_context(read)?;
            call.await
        }
    };
    for image in answer?.into_inner().images {
        let name = image.tags.first().or(image.digests.first()).map_or("(without a name)", String::as_str);
        print_line(&format!("{name} {}", short(&image.id)))?;
    }
    Ok(())
}

/// Sends an archive in chunks. The daemon may take no more, because it has
/// enough or is displeased; its answer tells.
async fn send_archive(
    mut archive: Box<dyn tokio::io::AsyncRead + Unpin + Send>,
    name: String,
    sender: tokio::sync::mpsc::Sender<v1::ImportImageRequest>,
) -> std::io::Result<()> {
    use v1::import_image_request::Part;
    let mut part = Part::Start(v1::ImportStart { name });
    while sender.send(v1::ImportImageRequest { part: Some(part) }).await.is_ok() {
        let mut chunk = Vec::with_capacity(CHUNK);
        while chunk.len() < CHUNK && archive.read_buf(&mut chunk).await? > 0 {}
        if chunk.is_empty() {
            break;
        }
        part = Part::Chunk(chunk);
    }
    Ok(())
}

async fn export(daemon: &socket::DaemonSocket, image: String, file: &Path) -> anyhow::Result<()> {
    let write = || format!("write {}", file.display());
    let to_output = file == Path::new("-");
    if to_output && std::io::stdout().is_terminal() {
        return Err(UsageError("an archive is nothing for a terminal; name a file".to_owned()).into());
    }
    let mut client = daemon.connect().await?;
    let mut chunks = client.admin.export_image(v1::ExportImageRequest { name: image }).await?.into_inner();
    // The first chunk, or the refusal, comes before there is a file.
    let mut next = chunks.message().await?;
    // Written beside it and renamed at the end: half an archive is none.
    let mut partial = file.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let mut out: Box<dyn tokio::io::AsyncWrite + Unpin + Send> = if to_output {
        Box::new(tokio::io::stdout())
    } else {
        Box::new(tokio::fs::File::create(&partial).await.with_context(write)?)
    };
    let result = async {
        while let Some(message) = next {
            out.write_all(&message.chunk).await.with_context(write)?;
            next = chunks.message().await?;
        }
        out.flush().await.with_context(write)
    };
    let result = result.await;
    if !to_output {
        match &result {
            Ok(()) => tokio::fs::rename(&partial, file).await.with_context(write)?,
            Err(_) => drop(tokio::fs::remove_file(&partial).await),
        }
    }
    result
}

fn image_json(image: &v1::Image) -> Value {
    json!({
        "id": image.id,
        "tags": image.tags,
        "digests": image.digests,
        "size": image.size,
        "platform": image.platform,
        "layers": image.layers,
        "created": image.created,
        "storedSize": image.stored_size,
        "complete": !image.incomplete,
    })
}

/// One row for each name.
fn image_table(images: &[v1::Image]) -> String {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for image in images {
        let names = if image.tags.is_empty() { &image.digests } else { &image.tags };
        let unnamed = ["(none)".to_owned()];
        for name in if names.is_empty() { &unnamed[..] } else { names } {
            let short = short(&image.id).to_owned();
            let mut platform = image.platform.clone();
            if image.incomplete {
                platform.push_str(" (incomplete: pull it)");
            }
            rows.push(vec![name.clone(), short, bytes(image.size), platform]);
        }
    }
    rows.sort();
    let heading = ["NAME", "ID", "SIZE", "PLATFORM"].map(str::to_owned).to_vec();
    rows.insert(0, heading);
    table(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_have_a_user_and_maybe_colons_in_the_password() {
        let found = credentials("user:pass:word\n").unwrap();
        assert_eq!((found.user.as_str(), found.password.as_str()), ("user", "pass:word"));
        for text in ["", "secret", ":secret"] {
            let error = credentials(text).unwrap_err();
            assert!(error.is::<UsageError>() && !error.to_string().contains("secret"), "{error}");
        }
    }

    #[test]
    fn images_in_a_table() {
        let image = |id: &str, tags: &[&str]| v1::Image {
            id: format!("sha256:{id}"),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            size: 4096,
            platform: "linux/amd64".to_owned(),
            ..v1::Image::default()
        };
        let images = [image("0123456789abcdef", &["b:2", "b:1"]), image("fedcba9876543210", &[])];
        assert_eq!(
            image_table(&images),
            "NAME     ID             SIZE      PLATFORM\n\
             (none)   fedcba987654   4.0 KiB   linux/amd64\n\
             b:1      0123456789ab   4.0 KiB   linux/amd64\n\
             b:2      0123456789ab   4.0 KiB   linux/amd64"
        );
    }

    #[test]
    fn what_a_removal_did() {
        let removed = |image_removed, in_use| v1::RemoveImageResponse {
            id: "sha256:0123456789abcdef".to_owned(),
            image_removed,
            in_use,
        };
        assert!(removed_line("a", &removed(false, false)).contains("has others"));
        assert_eq!(removed_line("a", &removed(true, false)), "a: image 0123456789ab removed");
        assert!(removed_line("a", &removed(true, true)).contains("containers that use them"));
    }
}
