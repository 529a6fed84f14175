//! What a tunnel costs: the same pod and the same node, once over the plain CNI
//! interface and once through a tunnel, turn and turn about in one run. All on one
//! machine, so both ends of everything share its processors.
//!
//! `cargo bench -p kina-attachment`, as root; `-- --quick` for a look.

#[cfg(not(target_os = "linux"))]
fn main() {}

#[cfg(target_os = "linux")]
#[path = "../tests/support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(target_os = "linux")]
mod linux {
    #![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark reports and panics")]

    use std::io::{Read, Write};
    use std::net::{IpAddr, TcpListener, TcpStream};
    use std::thread;
    use std::time::{Duration, Instant};

    use super::support::Net;
    use super::support::rig::Rig;

    /// One way between the pod and its node.
    struct Way {
        name: &'static str,
        rig: Rig,
        /// Where the pod's processes run.
        pod: Net,
        /// Bits each second, from the pod and to it, in each round.
        throughput: [Vec<f64>; 2],
        /// Round trips of 64 bytes, in each round.
        median: Vec<Duration>,
        worst_of_hundred: Vec<Duration>,
    }

    const POD: [u8; 4] = [10, 1, 0, 2];
    const NODE: [u8; 4] = [192, 0, 2, 1];

    pub(super) fn main() {
        let quick = std::env::args().any(|argument| argument == "--quick");
        let (rounds, time, trips) =
            if quick { (1, Duration::from_millis(300), 2_000) } else { (5, Duration::from_secs(2), 20_000) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut ways = vec![
            runtime.block_on(way("plain veth", None)),
            runtime.block_on(way("tunnel over IPv4", Some(false))),
            runtime.block_on(way("tunnel over IPv6", Some(true))),
        ];
        for _ in 0..rounds {
            for way in &mut ways {
                let (node, pod) = (&way.rig.nodes[0], &way.pod);
                way.throughput[0].push(stream(pod, node, NODE.into(), time));
                way.throughput[1].push(stream(node, pod, POD.into(), time));
                let mut times = round_trips(pod, node, trips);
                times.sort();
                way.median.push(times[times.len() / 2]);
                way.worst_of_hundred.push(times[times.len() * 99 / 100]);
            }
        }
        println!("median of {rounds} rounds | pod to node | node to pod | round trip | 99 of 100 within");
        for way in &mut ways {
            let [out, back] = way.throughput.each_mut().map(|all| {
                all.sort_by(f64::total_cmp);
                all[all.len() / 2] / 1e9
            });
            let [median, worst] = [&mut way.median, &mut way.worst_of_hundred].map(|all| {
                all.sort();
                all[all.len() / 2].as_secs_f64() * 1e6
            });
            println!("{} | {out:.2} Gbit/s | {back:.2} Gbit/s | {median:.1} µs | {worst:.1} µs", way.name);
        }
    }

    async fn way(name: &'static str, outer_ipv6: Option<bool>) -> Way {
        let rig = Rig::new(1500);
        let pod = rig.pod(0, 0, 1500, None);
        if let Some(outer_ipv6) = outer_ipv6 {
            rig.connect(&pod, 101, outer_ipv6).await;
        }
        let pod = if outer_ipv6.is_some() { keep(pod.inside, pod.sandbox) } else { pod.sandbox };
        let (median, worst_of_hundred) = (Vec::new(), Vec::new());
        Way { name, rig, pod, throughput: Default::default(), median, worst_of_hundred }
    }

    /// The namespace, while the other stays too: a benchmark runs to its end.
    fn keep(net: Net, other: Net) -> Net {
        std::mem::forget(other);
        net
    }

    /// Bits each second over one TCP connection.
    fn stream(from: &Net, to: &Net, address: IpAddr, time: Duration) -> f64 {
        let listener = to.run(move || TcpListener::bind((address, 0)).unwrap());
        let target = listener.local_addr().unwrap();
        let sink = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = vec![0; 1 << 20];
            let (start, mut bytes) = (Instant::now(), 0);
            loop {
                match stream.read(&mut buffer).unwrap() {
                    0 => return bytes as f64 * 8.0 / start.elapsed().as_secs_f64(),
                    length => bytes += length,
                }
            }
        });
        let mut source = from.run(move || TcpStream::connect(target).unwrap());
        let (data, start) = (vec![0; 1 << 20], Instant::now());
        while start.elapsed() < time {
            source.write_all(&data).unwrap();
        }
        drop(source);
        sink.join().unwrap()
    }

    fn round_trips(pod: &Net, node: &Net, count: usize) -> Vec<Duration> {
        let target = node.echo(NODE.into());
        let socket = pod.udp(POD.into());
        let mut buffer = [0; 64];
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            socket.send_to(&buffer, target).unwrap();
            socket.recv_from(&mut buffer).unwrap();
            times.push(start.elapsed());
        }
        socket.send_to(&[], target).unwrap();
        times
    }
}
