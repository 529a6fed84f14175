use super::*;

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(text, Path::new("test.toml"))
}

#[test]
fn the_printed_defaults_are_the_defaults() {
    assert_eq!(parse(&default_toml()).unwrap(), Config::default());
    assert!(Config::default().check().is_ok());
}

#[test]
fn the_printed_defaults_name_every_key() {
    fn keys(value: &toml::Value, found: &mut Vec<String>) {
        let toml::Value::Table(table) = value else {
            return;
        };
        for (key, value) in table {
            found.push(key.clone());
            keys(value, found);
        }
    }
    let mut found = Vec::new();
    keys(&toml::Value::try_from(Config::default()).unwrap(), &mut found);
    for key in found {
        let named = |line: &str| {
            line.starts_with(&format!("{key} "))
                || line == format!("[{key}]")
                || line == format!("[image.{key}]")
                || line == format!("[machine.{key}]")
        };
        assert!(DEFAULT_TOML.lines().any(named), "{key} is missing");
    }
}

#[test]
fn mistakes_are_named() {
    for (text, expected) in [
        ("rot = \"/x\"", "unknown field `rot`"),
        ("[log]\nformat = \"xml\"", "unknown variant `xml`"),
        ("root = 3", "invalid type"),
        ("[tracing]\nsampling = 1", "unknown field `sampling`"),
        ("[tracing]\nsampling_rate_per_million = -1", "invalid value"),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("test.toml"), "{error}");
    }
    let long = format!("socket = \"/{}\"", "s".repeat(SOCKET_PATH_LIMIT));
    for (text, expected) in [
        ("root = \"relative\"", "root: relative is not an absolute path"),
        ("run = \"/var/lib/kina\"", "run: must differ from root"),
        (long.as_str(), "socket: "),
        ("cgroup_parent = \"/a/../b\"", "cgroup_parent: "),
        ("[log]\nlevel = \"a=b=c\"", "log.level: "),
        ("[log]\nlevel = \"verbose\"", "log.level: \"verbose\" is none of error, warn"),
        ("[log]\nlevel = \"info,very loud\"", "log.level: \"very loud\" is none of"),
        ("[guest]\nprogram = \"bin/kina-guest\"", "guest.program: bin/kina-guest is not"),
        ("[guest]\nhandshake_seconds = 31536001", "guest.handshake_seconds: 31536001 is more"),
        ("[streaming]\nbase_url = \"http://node?a\"", "streaming.base_url: "),
        ("[machine]\nshare_roots = [\"/a/../b\"]", "machine.share_roots: /a/../b has"),
        ("[machine.qemu]\nmodules = [\"../a\"]", "machine.qemu.modules: \"../a\" is not"),
        ("[image]\nca_bundle = \"ca.pem\"", "image.ca_bundle: ca.pem is not"),
        ("[image]\nplain_http = [\"http://a.b\"]", "image.plain_http: \"http://a.b\" is not"),
        ("[image.mirrors]\n\"https://a.b\" = []", "image.mirrors: \"https://a.b\" is not"),
        ("[network]\nplugin_directories = []", "network.plugin_directories: names no directory"),
        ("[network]\nplugin_directories = [\"a\"]", "network.plugin_directories: a is not"),
        ("[network]\nadd_seconds = 0", "network.add_seconds: must be at least 1"),
        ("[streaming]\naddress = \"localhost\"", "streaming.address: \"localhost\" is not"),
        ("[streaming]\naddress = \"[::]:10010\"", "streaming.base_url: "),
        ("[streaming]\nbase_url = \"node:10010\"", "streaming.base_url: "),
        ("[streaming]\ncertificate = \"/c.pem\"", "streaming.key: "),
        ("[streaming]\nkey = \"/k.pem\"", "streaming.certificate: "),
        (
            "[streaming]\ncertificate = \"/c.pem\"\nkey = \"/k.pem\"\nbase_url = \"http://node\"",
            "streaming.base_url: ",
        ),
        ("[streaming]\nclient_ca = \"/ca.pem\"", "streaming.client_ca: "),
        ("[metrics]\naddress = \"9090\"", "metrics.address: \"9090\" is not"),
        ("[tracing]\nendpoint = \"127.0.0.1:4317\"", "tracing.endpoint: \"127.0.0.1:4317\" does not begin"),
        ("[tracing]\nendpoint = \"localhost\"", "tracing.endpoint: \"localhost\" does not begin"),
        ("[tracing]\nendpoint = \"http://a b\"", "tracing.endpoint: \"http://a b\" is no URL"),
        ("[tracing]\nendpoint = \"http://node\"", "tracing.endpoint: \"http://node\" has no port"),
        ("[tracing]\nendpoint = \"http://node:1/v1\"", "tracing.endpoint: \"http://node:1/v1\" has a path"),
        ("[tracing]\nendpoint = \"http://a:b@node:1\"", "tracing.endpoint: \"…@node:1\" has a user"),
        (
            "[tracing]\nsampling_rate_per_million = 1000001",
            "tracing.sampling_rate_per_million: 1000001 is more than 1000000",
        ),
        ("[tracing]\nca_bundle = \"ca.pem\"", "tracing.ca_bundle: ca.pem is not"),
        (
            "[tracing]\nendpoint = \"http://node:1\"\nca_bundle = \"/ca.pem\"",
            "tracing.ca_bundle: has no use with \"http://node:1\"",
        ),
        ("[machine]\ncpus = 0", "machine.cpus: must be at least 1"),
        ("[machine]\nshare_roots = [\"data\"]", "machine.share_roots: data is not"),
        ("[machine.qemu]\nkernel = \"/vmlinuz\"", "machine.qemu.kernel_modules: "),
        ("[machine.apple]\nkernel = \"vmlinux\"", "machine.apple.kernel: "),
        ("[machine.apple]\nmtu = 1000", "machine.apple.mtu: "),
        ("[machine.apple]\nnetwork = \"none\"", "machine.apple.network: "),
        ("[machine.apple]\nlimit = 0", "machine.apple.limit: must be at least 1"),
        ("[machine.qemu]\nusers = 0", "machine.qemu.users: must be at least 1"),
        ("[machine.qemu]\nusers = 1", "machine.qemu.users: is less than 2"),
        ("[image]\nhosts_directories = [\"certs.d\"]", "image.hosts_directories: "),
        ("[image.mirrors]\n\"docker.io\" = [\"localhost:5000\"]", "image.mirrors: "),
    ] {
        let error = parse(text).unwrap().check().unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn what_people_write_is_good() {
    for text in [
        "[log]\nlevel = \"warn\"",
        "[log]\nlevel = \"INFO,kina::pod=debug,h2=off\"",
        "[log]\nlevel = \"kina\"",
        "[log]\nlevel = \"off,[pod]=trace\"",
        "[image]\nplain_http = [\"localhost\", \"127.0.0.1:5000\", \"[::1]:5000\", \"Registry\"]",
        "[image.mirrors]\n\"docker.io\" = [\"http://127.0.0.1:5000\"]",
        "[tracing]\nendpoint = \"http://[::1]:4317\"\nsampling_rate_per_million = 1000000",
        "[tracing]\nendpoint = \"https://collector.example:4317/\"\nca_bundle = \"/ca.pem\"",
        "[machine.qemu]\nmodules = [\"nf_tables\", \"snd-hda\"]",
    ] {
        assert!(parse(text).unwrap().check().is_ok(), "{text}: {:?}", parse(text).unwrap().check());
    }
}

#[test]
fn programs_are_found_around_kina_s_own() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().canonicalize().unwrap();
    let at = |path: &str| root.join(path);
    for path in ["Cellar/kina/1/bin", "bin"] {
        std::fs::create_dir_all(at(path)).unwrap();
    }
    std::fs::write(at("Cellar/kina/1/bin/kina"), "").unwrap();
    std::os::unix::fs::symlink(at("Cellar/kina/1/bin/kina"), at("bin/kina")).unwrap();
    let versioned = [at("Cellar/kina/1/bin"), at("Cellar/kina/1/libexec/kina")];
    assert_eq!(around(&at("Cellar/kina/1/bin/kina")), versioned);
    let [bin, libexec] = versioned;
    assert_eq!(around(&at("bin/kina")), [at("bin"), at("libexec/kina"), bin, libexec]);
}

#[test]
fn daemons_with_other_roots_do_not_share_names() {
    assert_eq!(netns_prefix(Path::new("/var/lib/kina")), "kina-");
    let (one, two) = (netns_prefix(Path::new("/tmp/a")), netns_prefix(Path::new("/tmp/b")));
    assert_ne!(one, two);
    // What comes after the prefix must not parse as a pod id of the other.
    assert!(two.starts_with("kina-") && two.len() > "kina-".len());
}
