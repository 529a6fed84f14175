//! Whatever plugins and files say: nothing panics, nothing is lost.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use common::FakeHost;
use ipnet::IpNet;
use kina_cni::{
    ConvertError, Dns, Executed, Interface, IpConfig, Network, NetworkResult, Route, SpecVersion,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        "\\PC{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((key(), inner), 0..5).prop_map(|pairs| pairs.into_iter().collect()),
        ]
    })
}

/// Often one that means something.
fn key() -> impl Strategy<Value = String> {
    let known = vec![
        "cniVersion",
        "interfaces",
        "ips",
        "routes",
        "dns",
        "address",
        "interface",
        "name",
        "ip4",
        "dst",
        "gw",
        "code",
        "msg",
        "details",
        "supportedVersions",
        "type",
        "capabilities",
        "plugins",
        "kind",
        "result",
    ];
    prop_oneof![proptest::sample::select(known).prop_map(str::to_owned), "[a-z]{1,4}"]
}

fn version() -> impl Strategy<Value = SpecVersion> {
    proptest::sample::select(SpecVersion::ALL.to_vec())
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
    ]
}

fn net() -> impl Strategy<Value = IpNet> {
    (address(), any::<u8>()).prop_map(|(address, prefix)| {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix % (longest + 1)).unwrap()
    })
}

fn text() -> impl Strategy<Value = Option<String>> {
    option::of("[a-z0-9:/.]{1,12}")
}

fn number() -> impl Strategy<Value = Option<u32>> {
    option::of(1..u32::MAX)
}

prop_compose! {
    fn interface()(
        name in "[a-z]{1,8}",
        (mac, sandbox, socket_path, pci_id) in (text(), text(), text(), text()),
        mtu in number(),
    ) -> Interface {
        Interface { name, mac, mtu, sandbox, socket_path, pci_id, other: Map::new() }
    }
}

prop_compose! {
    fn ip()(address in net(), gateway in option::of(address()), interface in option::of(0usize..5)) -> IpConfig {
        IpConfig { address, gateway, interface, other: Map::new() }
    }
}

prop_compose! {
    fn route()(
        (dst, gw) in (net(), option::of(address())),
        (mtu, advmss, priority, table, scope) in (number(), number(), number(), number(), number()),
    ) -> Route {
        Route { gw, mtu, advmss, priority, table, scope, ..Route::new(dst) }
    }
}

prop_compose! {
    fn result()(
        interfaces in vec(interface(), 0..4),
        (ips, routes) in (vec(ip(), 0..4), vec(route(), 0..4)),
        (nameservers, search, options) in
            (vec("[a-z]{1,4}", 0..3), vec("[a-z]{1,4}", 0..3), vec("[a-z]{1,4}", 0..3)),
        domain in text(),
        unknown in option::of(any::<u64>()),
    ) -> NetworkResult {
        let dns = Dns { nameservers, domain, search, options, other: Map::new() };
        let other = unknown.map(|value| ("x".to_owned(), json!({"y": value}))).into_iter().collect();
        NetworkResult { interfaces, ips, routes, dns, other }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn results_survive_all_versions(result in result(), version in version()) {
        let written = match result.to_value(version) {
            Ok(written) => written,
            Err(ConvertError::NoAddress(_)) => {
                prop_assert!(result.ips.is_empty() && version <= SpecVersion::V0_2_0);
                return Ok(());
            }
            Err(error) => panic!("{error}"),
        };
        // The version is stated, so the default does not matter.
        let read = NetworkResult::from_value(written.clone(), SpecVersion::V1_1_0).unwrap();
        let mut expected = result.clone();
        if version < SpecVersion::V1_0_0 {
            for interface in &mut expected.interfaces {
                *interface = Interface {
                    name: interface.name.clone(),
                    mac: interface.mac.clone(),
                    sandbox: interface.sandbox.clone(),
                    ..Interface::default()
                };
            }
        }
        if version <= SpecVersion::V0_2_0 {
            let of = |is_v4| {
                let ip = result.ips.iter().find(|ip| ip.address.addr().is_ipv4() == is_v4);
                ip.map(|ip| IpConfig { interface: None, ..ip.clone() })
            };
            let routes = |is_v4| {
                let has_ip = of(is_v4).is_some();
                let routes = result.routes.iter().filter(move |route| route.dst.addr().is_ipv4() == is_v4);
                routes.filter(move |_| has_ip).map(|route| Route { gw: route.gw, ..Route::new(route.dst) })
            };
            expected = NetworkResult {
                ips: [of(true), of(false)].into_iter().flatten().collect(),
                routes: routes(true).chain(routes(false)).collect(),
                dns: result.dns.clone(),
                ..NetworkResult::default()
            };
        }
        prop_assert_eq!(&read, &expected);
        // What has been through a version goes through it unchanged.
        prop_assert_eq!(read.to_value(version).unwrap(), written);
    }

    #[test]
    fn results_of_any_kind_are_read_or_refused(json in any_json(), bytes in vec(any::<u8>(), 0..60), version in version()) {
        let _ = NetworkResult::parse(&bytes, version);
        if let Ok(result) = NetworkResult::from_value(json, version) {
            let _ = result.to_value(version);
        }
    }

    #[test]
    fn configurations_of_any_kind_are_read_or_refused(
        json in any_json(),
        bytes in vec(any::<u8>(), 0..60),
        plugins in any_json(),
        key in key(),
    ) {
        let _ = (Network::from_list(&bytes), Network::from_single(&bytes));
        let text = json.to_string();
        let _ = (Network::from_list(text.as_bytes()), Network::from_single(text.as_bytes()));
        let mut list = json!({"name": "pods", "plugins": [{"type": "a", "x": plugins.clone()}, plugins]});
        list[key] = json;
        let _ = Network::from_list(list.to_string().as_bytes());
    }

    #[test]
    fn unknown_keys_reach_the_plugin(pairs in vec(("x[a-z]{1,6}", any_json()), 0..6)) {
        let mut plugin: Map<String, Value> = pairs.into_iter().collect();
        plugin.insert("type".to_owned(), json!("a"));
        let list = json!({"cniVersion": "1.1.0", "name": "pods", "plugins": [plugin]});
        let network = Network::from_list(list.to_string().as_bytes()).unwrap();
        let host = FakeHost::new();
        host.good_plugins(&["a"]);
        block_on(host.cni().status(&network)).unwrap();
        plugin.extend([("name".to_owned(), json!("pods")), ("cniVersion".to_owned(), json!("1.1.0"))]);
        prop_assert_eq!(&host.calls()[0].stdin, &Value::Object(plugin));
    }

    #[test]
    fn whatever_a_plugin_prints_is_a_result_or_an_error(
        json in any_json(),
        bytes in vec(any::<u8>(), 0..60),
        code in 0i32..3,
        as_json in any::<bool>(),
    ) {
        let stdout = if as_json { json.to_string().into_bytes() } else { bytes.clone() };
        let host = FakeHost::new();
        host.plugin("a", move |_| {
            Ok(Executed { code, stdout: stdout.clone(), stderr: bytes.clone() })
        });
        let (cni, network) = (host.cni(), common::network("1.1.0", &["a"]));
        let added = block_on(cni.add(&network, &common::attachment()));
        prop_assert!(code == 0 || added.is_err());
        if let Err(error) = added {
            let _ = (error.cause.to_string(), error.cause.code());
        }
        let _ = block_on(cni.status(&network)).map_err(|error| error.to_string());
        let _ = block_on(cni.plugin_versions("a")).map_err(|error| error.to_string());
        prop_assert_eq!(block_on(cni.del(&network, &common::attachment())).is_ok(), code == 0);
    }

    #[test]
    fn whatever_the_cache_holds_del_is_done(json in any_json(), bytes in vec(any::<u8>(), 0..60), as_json in any::<bool>()) {
        let host = FakeHost::new();
        host.good_plugins(&["a"]);
        let file = "/var/lib/cni/results/pods-pod1-eth0";
        host.write(file, if as_json { json.to_string().into_bytes() } else { bytes });
        let (cni, network) = (host.cni(), common::network("1.1.0", &["a"]));
        let _ = block_on(cni.cached_attachments()).unwrap();
        block_on(cni.del_cached("pods", Some(&network), &common::attachment())).unwrap();
        prop_assert_eq!(host.order(), ["DEL a"]);
        prop_assert_eq!(host.read(file), None);
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}
