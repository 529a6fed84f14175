//! What only a Mac has: Apple's `container` with its service, kernel and network.
//! `facts` reads what programs print, `look` asks them, `judge` says what it means.

mod facts;
pub(super) mod first_run;
mod judge;
mod kernel;
mod look;
mod routes;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::judge::Check;
use crate::config::Config;

/// Examines a Mac. `search` is where programs are looked for, `home` the user's.
pub(super) async fn examine(config: &Config, search: &[PathBuf], home: &Path) -> Vec<Check> {
    let apple = &config.machine.apple;
    let container = look::container(&apple.program(), !apple.program.as_os_str().is_empty(), search).await;
    let mut checks = vec![judge::container(&container)];
    if let facts::Container::Found { program, .. } = &container {
        let service = look::service(program).await;
        checks.push(judge::service(&service));
        if let facts::Service::Running { root } = &service {
            let kernel = look::kernel(&apple.kernel, root);
            checks.extend([judge::kernel(&kernel), judge::node_kernel(&kernel)]);
            let networks = look::networks(program).await;
            let routes = look::routes(search).await;
            checks.push(judge::networks(&networks, &apple.network));
            checks.push(judge::routes(&networks, &apple.network, &routes));
            let machines = look::machines(program).await;
            let memory = look::memory(search).await;
            checks.extend([judge::slots(&machines, apple.limit), judge::memory(&machines, memory, config)]);
        }
    }
    checks.extend([
        judge::image(look::image(config)),
        judge::paths(config),
        judge::local_network(look::agent(home)),
    ]);
    checks
}
