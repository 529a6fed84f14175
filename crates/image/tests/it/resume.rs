//! Transfers of layers that break off and go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kina_image::{Config, Error, Image, Images, LayerProgress, LayerState};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Semaphore, watch};

use crate::fixtures::{TestImage, TestLayer, blobs_in, digest, layers_in, no_temporary_files, until};
use crate::registry::{Manner, Registry, Reply, blob_path};

const TAG: &str = "\"as-it-is\"";

/// An image with one layer, at a registry, and a store.
struct Bench {
    registry: Registry,
    image: TestImage,
    /// The layer as transferred.
    layer: Vec<u8>,
    path: String,
    root: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Self {
        let registry = Registry::start().await;
        let image = TestImage::new(vec![TestLayer::noise("file", 300_000)]);
        registry.serve_image("app", "v1", &image);
        let layer = image.blobs[1].clone();
        let path = blob_path("app", &layer);
        Self { registry, image, layer, path, root: tempfile::tempdir().unwrap() }
    }

    /// The layer from a server that continues where it is asked to.
    fn whole(&self) -> Reply {
        Reply::ok(self.layer.clone()).ranges().header("ETag", TAG)
    }

    fn cut(&self, after: usize) -> Reply {
        self.whole().manner(Manner::HangUpAfter(after))
    }

    fn serve(&self, replies: impl Into<Vec<Reply>>) {
        self.registry.route_in_turn(&self.path, replies.into());
    }

    /// Replaces the store's root, so that the next pull has everything to do.
    fn afresh(&mut self) {
        self.root = tempfile::tempdir().unwrap();
    }

    fn config(&self) -> Config {
        self.registry.config(self.root.path())
    }

    async fn pull(&self) -> (Result<Image, Error>, LayerProgress) {
        self.pull_with(self.config()).await
    }

    async fn pull_with(&self, config: Config) -> (Result<Image, Error>, LayerProgress) {
        pull(config, &self.registry.reference("app:v1").to_string()).await
    }

    fn assert_is_here(&self, pulled: Result<Image, Error>) {
        let pulled = pulled.unwrap();
        assert_eq!(pulled.id, self.image.id());
        assert_eq!(pulled.layers[0].digest, digest(&self.layer));
        assert_eq!(pulled.layers[0].diff_id, digest(&self.image.layers[0].archive));
        let blob = self.root.path().join("oci/blobs/sha256").join(pulled.layers[0].digest.hex());
        assert_eq!(digest(&std::fs::read(blob).unwrap()), digest(&self.layer));
        assert!(no_temporary_files(self.root.path()));
    }

    /// Nothing of the layer is in the store, under its own name or another.
    fn assert_is_not_here(&self) {
        assert!(blobs_in(self.root.path()).is_empty());
        assert!(layers_in(self.root.path()).is_empty());
    }

    /// The first bytes that were asked for, request for request.
    fn asked(&self) -> Vec<usize> {
        let ranges = self.registry.ranges(&self.path);
        ranges
            .into_iter()
            .map(|(range, _)| range.map_or(0, |range| range[6..range.len() - 1].parse().unwrap()))
            .collect()
    }
}

async fn pull(config: Config, reference: &str) -> (Result<Image, Error>, LayerProgress) {
    let store = Images::open(config).await.unwrap();
    let (sender, progress) = watch::channel(Default::default());
    let outcome = store.pull(&reference.parse().unwrap(), None, Some(sender)).await;
    let layer = progress.borrow().layers[0].clone();
    (outcome, layer)
}

/// Where a transfer of so many bytes is cut: different places, in order.
fn cuts(seed: u64, count: usize, length: usize) -> Vec<usize> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut places = std::collections::BTreeSet::new();
    while places.len() < count {
        places.insert(random.random_range(1..length));
    }
    places.into_iter().collect()
}

#[tokio::test]
async fn twenty_cuts_bring_no_byte_twice() {
    for seed in [1, 2, 3] {
        let bench = Bench::new().await;
        let places = cuts(seed, 20, bench.layer.len());
        let starts: Vec<_> = [0].into_iter().chain(places.iter().copied()).collect();
        let mut replies: Vec<_> = starts.iter().zip(&places).map(|(from, to)| bench.cut(to - from)).collect();
        replies.push(bench.whole());
        bench.serve(replies);
        let (pulled, progress) = bench.pull().await;
        bench.assert_is_here(pulled);
        let (size, sent) = (bench.layer.len() as u64, bench.registry.sent(&bench.path));
        let requests = bench.registry.count(&bench.path);
        println!("seed {seed}: {size} bytes, cut 20 times: {sent} bytes sent in {requests} answers");
        assert_eq!(bench.asked(), starts, "seed {seed}");
        assert_eq!(sent, size, "seed {seed}");
        assert_eq!((progress.resumed, progress.transferred), (20, size), "seed {seed}");
        assert_eq!((progress.fetched, progress.state), (size, LayerState::Done));
        for (number, (_, if_range)) in bench.registry.ranges(&bench.path).into_iter().enumerate() {
            assert_eq!(if_range.as_deref(), (number > 0).then_some(TAG));
        }
    }
}

#[tokio::test]
async fn only_failures_that_brought_nothing_count() {
    let mut bench = Bench::new().await;
    // With two tries, one failure may follow each piece that came.
    let broken = Reply::raw([]);
    let mut replies = Vec::new();
    for _ in 0..5 {
        replies.extend([bench.cut(20_000), broken.clone()]);
    }
    replies.push(bench.whole());
    bench.serve(replies.clone());
    let (pulled, progress) = bench.pull().await;
    bench.assert_is_here(pulled);
    assert_eq!(progress.resumed, 5);
    // And with one, none.
    bench.afresh();
    bench.serve([bench.cut(20_000), bench.cut(20_000), bench.whole()]);
    bench.assert_is_here(bench.pull_with(Config { attempts: 1, ..bench.config() }).await.0);
    bench.afresh();
    bench.serve([bench.cut(20_000), broken, bench.whole()]);
    let (failed, _) = bench.pull_with(Config { attempts: 1, ..bench.config() }).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    bench.assert_is_not_here();
}

#[tokio::test]
async fn a_drip_ends() {
    let bench = Bench::new().await;
    bench.serve([bench.cut(10)]);
    let mut config = bench.config();
    config.limits.resumes = 10;
    let (failed, _) = bench.pull_with(config).await;
    assert!(matches!(failed, Err(Error::Unreachable { .. })), "{failed:?}");
    assert!((11..=13).contains(&bench.registry.count(&bench.path)), "{:?}", bench.asked());
    bench.assert_is_not_here();
}

#[tokio::test]
async fn a_silent_server_is_asked_for_the_rest() {
    let bench = Bench::new().await;
    bench.serve([bench.whole().manner(Manner::StallAfter(100_000)), bench.whole()]);
    let mut config = bench.config();
    config.timeouts.stall = Duration::from_millis(200);
    bench.assert_is_here(bench.pull_with(config).await.0);
    assert_eq!(bench.asked(), [0, 100_000]);
}

#[tokio::test]
async fn the_rest_is_asked_for_behind_a_redirect() {
    let bench = Bench::new().await;
    bench.serve([Reply::status(307).header("Location", "/storage/layer")]);
    bench.registry.route_in_turn("/storage/layer", vec![bench.cut(5000), bench.cut(70_000), bench.whole()]);
    bench.assert_is_here(bench.pull().await.0);
    assert_eq!(bench.registry.sent("/storage/layer"), bench.layer.len() as u64);
}

#[tokio::test]
async fn a_server_without_ranges_serves_it_in_the_end() {
    let mut bench = Bench::new().await;
    let whole = Reply::ok(bench.layer.clone());
    let cut = |after| whole.clone().manner(Manner::HangUpAfter(after));
    // What came already is passed over, and a shorter piece brings nothing.
    bench.serve([cut(50_000), cut(200_000), cut(100_000), cut(290_000), whole.clone()]);
    let (pulled, progress) = bench.pull().await;
    bench.assert_is_here(pulled);
    assert_eq!(progress.transferred, 640_000 + bench.layer.len() as u64);
    assert_eq!(progress.resumed, 4);
    // Nor does the length have to be known.
    bench.afresh();
    bench.serve([cut(50_000), whole.clone().manner(Manner::Chunked)]);
    bench.assert_is_here(bench.pull().await.0);
    // It may take the wish for a mistake.
    for status in [416, 206] {
        bench.afresh();
        bench.serve([cut(50_000), Reply::status(status), whole.clone()]);
        bench.assert_is_here(bench.pull().await.0);
    }
}

#[tokio::test]
async fn a_part_that_is_not_the_rest_is_not_taken() {
    let mut bench = Bench::new().await;
    let (half, total) = (150_000, bench.layer.len());
    let (last, rest) = (total - 1, bench.layer[half..].to_vec());
    for (range, body) in [
        (format!("bytes {}-{last}/{total}", half + 1), &rest[1..]),
        (format!("bytes 0-{last}/{total}"), &bench.layer[..]),
        (format!("bytes {half}-{last}/{}", total + 1), &rest[..]),
        (format!("bytes {half}-{total}/{}", total + 1), &rest[..]),
        (format!("bytes {half}-{}/{total}", last - 1), &rest[..rest.len() - 1]),
        (format!("bytes {half}-{last}/{total}"), &rest[1..]),
        (format!("bytes */{total}"), &rest[..]),
        ("nonsense".to_owned(), &rest[..]),
    ] {
        let part = Reply { status: 206, ..Reply::ok(body) }.header("Content-Range", &*range);
        let root = tempfile::tempdir().unwrap();
        bench.serve([bench.cut(half), part.clone(), bench.cut(half + 10), bench.whole()]);
        let asked = bench.asked().len();
        let (pulled, progress) =
            pull(bench.registry.config(root.path()), &bench.registry.reference("app:v1").to_string()).await;
        assert_eq!(pulled.unwrap().layers[0].diff_id, digest(&bench.image.layers[0].archive), "{range}");
        // Such a host is not asked for a part again.
        assert_eq!(bench.asked()[asked..], [0, half, 0, 0], "{range}");
        assert_eq!(progress.resumed, 2, "{range}");
        // If it always answers so, it has itself to blame.
        let root = tempfile::tempdir().unwrap();
        bench.serve([bench.cut(half), part]);
        let (failed, _) =
            pull(bench.registry.config(root.path()), &bench.registry.reference("app:v1").to_string()).await;
        let error = failed.unwrap_err();
        assert!(error.to_string().contains("HTTP status 206"), "{range}: {error}");
        assert!(blobs_in(root.path()).is_empty() && layers_in(root.path()).is_empty(), "{range}");
    }
    // A part that has the length, but not the bytes.
    bench.afresh();
    let mut wrong = rest;
    wrong[1000] ^= 1;
    let wrong = Reply { status: 206, ..Reply::ok(wrong) }
        .header("Content-Range", format!("bytes {half}-{last}/{total}"));
    bench.serve([bench.cut(half), wrong.clone(), bench.whole()]);
    bench.assert_is_here(bench.pull().await.0);
    // More than it announces.
    bench.afresh();
    let longer = Reply { status: 206, ..Reply::ok(vec![0; total]) }
        .header("Content-Range", format!("bytes {half}-{last}/{total}"))
        .manner(Manner::Chunked);
    bench.serve([bench.cut(half), longer, bench.whole()]);
    bench.assert_is_here(bench.pull().await.0);
}

#[tokio::test]
async fn content_that_changes_makes_no_image() {
    let mut bench = Bench::new().await;
    let mut other = bench.layer.clone();
    other[100..200].fill(7);
    other[200_000..200_100].fill(7);
    let other = Reply::ok(other).ranges().header("ETag", "\"other\"");
    let other_cut = other.clone().manner(Manner::HangUpAfter(150_000));
    // The server says that it is another: 200 to `If-Range`.
    bench.serve([other_cut.clone(), bench.whole()]);
    let (pulled, progress) = bench.pull().await;
    bench.assert_is_here(pulled);
    assert_eq!(bench.asked(), [0, 150_000, 0]);
    assert!(progress.transferred >= 150_000 + bench.layer.len() as u64, "{progress:?}");
    // Or it does not, or says it only weakly.
    for tag in [None, Some("W/\"same\"")] {
        let untagged = |mut reply: Reply| {
            reply.headers = tag.map(|tag| ("ETag".to_owned(), tag.to_owned())).into_iter().collect();
            reply
        };
        bench.afresh();
        bench.serve([untagged(other_cut.clone()), untagged(bench.whole())]);
        bench.assert_is_here(bench.pull().await.0);
        assert!(bench.registry.ranges(&bench.path).iter().skip(3).all(|(_, if_range)| if_range.is_none()));
    }
    // The good content goes away for good.
    bench.afresh();
    bench.serve([bench.cut(150_000), other]);
    let error = bench.pull().await.0.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    bench.assert_is_not_here();
}

#[tokio::test]
async fn a_host_that_asks_for_patience_gets_it() {
    let mut bench = Bench::new().await;
    let busy = |status, after: &str| Reply::status(status).header("Retry-After", after);
    bench.serve([bench.cut(100_000), busy(503, "1"), bench.whole()]);
    let start = Instant::now();
    bench.assert_is_here(bench.pull().await.0);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(bench.asked(), [0, 100_000, 100_000]);
    for reply in
        [busy(429, "0"), busy(429, "Sun, 06 Nov 1994 08:49:37 GMT"), busy(503, "later"), Reply::status(429)]
    {
        bench.afresh();
        bench.serve([bench.cut(100_000), reply, bench.whole()]);
        bench.assert_is_here(bench.pull().await.0);
    }
    // But not for ever.
    for (status, after) in
        [(503, "86400"), (429, "18446744073709551615"), (503, "Tue, 31 Dec 2999 23:59:59 GMT")]
    {
        bench.afresh();
        bench.serve([bench.cut(100_000), busy(status, after), bench.whole()]);
        let start = Instant::now();
        let error = bench.pull().await.0.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(10), "{after}");
        let text = error.to_string();
        assert!(text.contains(&format!("HTTP status {status}, to be asked again in ")), "{text}");
        bench.assert_is_not_here();
    }
}

#[tokio::test]
async fn the_next_host_goes_on() {
    let mut bench = Bench::new().await;
    let mirror = Registry::start().await;
    let reference = bench.registry.reference("app:v1").to_string();
    mirror.serve_image("app", "v1", &bench.image);
    let directory = tempfile::tempdir().unwrap();
    let hosts = directory.path().join(&bench.registry.address);
    std::fs::create_dir(&hosts).unwrap();
    std::fs::write(
        hosts.join("hosts.toml"),
        format!("server = \"http://{}\"\n[host.\"http://{}\"]\n", bench.registry.address, mirror.address),
    )
    .unwrap();
    let total = bench.layer.len();
    for from_file in [false, true] {
        bench.afresh();
        let mut config = bench.config();
        if from_file {
            config.hosts_directories = vec![directory.path().to_owned()];
        } else {
            let url = format!("http://{}", mirror.address);
            config.mirrors.insert(bench.registry.address.clone(), vec![url]);
        }
        let before = bench.registry.sent(&bench.path);
        mirror.route_in_turn(&bench.path, vec![bench.cut(100_000), bench.cut(23_456), Reply::raw([])]);
        bench.serve([bench.cut(50_000), bench.whole()]);
        let (pulled, progress) = pull(config.clone(), &reference).await;
        bench.assert_is_here(pulled);
        assert_eq!(bench.registry.sent(&bench.path) - before, (total - 123_456) as u64);
        assert_eq!((progress.transferred, progress.resumed), (total as u64, 3));
        // A tag of one host means nothing at another.
        let asked = bench.registry.ranges(&bench.path);
        assert_eq!(asked[asked.len() - 2], (Some("bytes=123456-".to_owned()), None));
        assert_eq!(asked[asked.len() - 1], (Some("bytes=173456-".to_owned()), Some(TAG.to_owned())));

        // What the first host spoiled, the second makes good.
        bench.afresh();
        config.root = bench.root.path().to_owned();
        let spoiled = Reply::ok(vec![1; total]).manner(Manner::HangUpAfter(100_000));
        mirror.route_in_turn(&bench.path, vec![spoiled, Reply::status(404)]);
        bench.serve([bench.whole()]);
        bench.assert_is_here(pull(config.clone(), &reference).await.0);

        // And if none is left, each is named with its reason.
        bench.afresh();
        config.root = bench.root.path().to_owned();
        mirror.route_in_turn(&bench.path, vec![bench.cut(100_000), Reply::status(404)]);
        bench.serve([bench.cut(100_000), Reply::status(503)]);
        let error = pull(config, &reference).await.0.unwrap_err();
        let Error::Unreachable { attempts, .. } = &error else { panic!("{error}") };
        let hosts: Vec<_> = attempts.iter().map(|attempt| attempt.host.clone()).collect();
        assert_eq!(
            hosts,
            [format!("http://{}", mirror.address), format!("http://{}", bench.registry.address)]
        );
        assert!(attempts[0].reason.starts_with("not found"), "{error}");
        assert!(attempts[1].reason.starts_with("HTTP status 503"), "{error}");
        assert!(error.to_string().contains(&format!("{}: not found", mirror.address)), "{error}");
        bench.assert_is_not_here();
    }
}

#[tokio::test]
async fn a_resumed_transfer_outlives_one_of_its_waiters() {
    for same_image in [true, false] {
        let bench = Bench::new().await;
        bench.registry.serve_image("twin", "v1", &bench.image);
        let twin = if same_image { "app:v1" } else { "twin:v1" };
        let gate = Arc::new(Semaphore::new(0));
        bench.serve([bench.cut(100_000), bench.whole().manner(Manner::Gated(gate.clone()))]);
        bench.registry.route(&blob_path("twin", &bench.layer), Reply::status(500));
        let store = Images::open(bench.config()).await.unwrap();
        let start = |name: &str| {
            let (store, reference) = (store.clone(), bench.registry.reference(name));
            let (sender, progress) = watch::channel(Default::default());
            (tokio::spawn(async move { store.pull(&reference, None, Some(sender)).await }), progress)
        };
        let (first, _) = start("app:v1");
        until("the transfer goes on", || bench.registry.count(&bench.path) == 2).await;
        let (second, progress) = start(twin);
        // It sees what there was before it came.
        until("the other waits for the same", || {
            let progress: &kina_image::Progress = &progress.borrow();
            progress.layers.first().is_some_and(|layer| layer.fetched > 0)
        })
        .await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        gate.add_permits(1);
        bench.assert_is_here(second.await.unwrap());
        let layer = progress.borrow().layers[0].clone();
        assert_eq!((layer.resumed, layer.transferred), (1, bench.layer.len() as u64));
        assert_eq!(bench.asked(), [0, 100_000]);
        assert_eq!(bench.registry.sent(&bench.path), bench.layer.len() as u64);
    }
}
