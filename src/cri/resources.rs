//! Limits.

use std::collections::BTreeMap;

use kina_model::{Resources, SpecError};

use super::{check, v1};

/// The kernel's bounds of a CPU period, in microseconds (sched-bwc.rst).
const CPU_PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;

/// The least CPU quota the kernel takes, in microseconds.
const LEAST_CPU_QUOTA: i64 = 1_000;

/// The range of oom_score_adj (proc(5)).
const OOM_SCORES: std::ops::RangeInclusive<i64> = -1_000..=1_000;

/// The limits at that field. Zero leaves a number unset, as in the CRI.
///
/// # Errors
/// The first number that makes no sense.
pub fn resources(field: &str, message: v1::LinuxContainerResources) -> Result<Resources, SpecError> {
    let v1::LinuxContainerResources {
        cpu_period,
        cpu_quota,
        cpu_shares,
        memory_limit_in_bytes,
        oom_score_adj,
        cpuset_cpus,
        cpuset_mems,
        hugepage_limits,
        unified,
        memory_swap_limit_in_bytes,
    } = message;

    let cpu_period_micros = match check::natural(&format!("{field}.cpu_period"), cpu_period)? {
        0 => None,
        period if CPU_PERIODS.contains(&period) => Some(period),
        period => {
            let reason = format!("{period} is out of range; from 1000 to 1000000 microseconds are possible");
            return Err(SpecError::invalid(format!("{field}.cpu_period"), reason));
        }
    };
    let cpu_quota_micros = match cpu_quota {
        0 => None,
        quota if quota < 0 => Some(-1),
        quota if quota >= LEAST_CPU_QUOTA => Some(quota),
        quota => {
            let reason =
                format!("{quota} is less than the kernel takes; ask for 1000 microseconds or more, or -1");
            return Err(SpecError::invalid(format!("{field}.cpu_quota"), reason));
        }
    };
    let cpu_shares = match check::natural(&format!("{field}.cpu_shares"), cpu_shares)? {
        0 => None,
        shares => Some(shares),
    };
    let memory_limit_bytes = match memory_limit_in_bytes {
        0 => None,
        limit if (0..NO_MEMORY_LIMIT).contains(&limit) => Some(limit),
        _ => Some(-1),
    };
    let swap_field = format!("{field}.memory_swap_limit_in_bytes");
    let memory_swap_limit_bytes = bytes(&swap_field, memory_swap_limit_in_bytes)?;
    if let (Some(memory), Some(both)) = (memory_limit_bytes, memory_swap_limit_bytes)
        && both >= 0
        && (memory < 0 || both < memory)
    {
        let reason = format!("{both} bytes of memory and swap together are less than the memory limit");
        return Err(SpecError::invalid(swap_field, reason));
    }
    let oom_score_adj = match i32::try_from(oom_score_adj) {
        Ok(score) if OOM_SCORES.contains(&i64::from(score)) => Some(score),
        _ => {
            let reason = format!("{oom_score_adj} is out of range; from -1000 to 1000 are possible");
            return Err(SpecError::invalid(format!("{field}.oom_score_adj"), reason));
        }
    };
    cpu_list(&format!("{field}.cpuset_cpus"), &cpuset_cpus)?;
    cpu_list(&format!("{field}.cpuset_mems"), &cpuset_mems)?;
    for name in unified.keys() {
        unified_file(&format!("{field}.unified[{name}]"), name)?;
    }
    Ok(Resources {
        cpu_shares,
        cpu_quota_micros,
        cpu_period_micros,
        cpuset_cpus,
        cpuset_mems,
        memory_limit_bytes,
        memory_swap_limit_bytes,
        pids_limit: None,
        oom_score_adj,
        hugepage_limits: hugepages(&format!("{field}.hugepage_limits"), hugepage_limits)?,
        unified,
    })
}

/// As many bytes of memory and more are no limit. What the kubelet reads of a cgroup
/// without one is the kernel's largest number on cgroup v1 and -1 on v2; what it
/// sends (UpdatePodSandboxResources) is that less the pod's overhead.
const NO_MEMORY_LIMIT: i64 = 1 << 62;

fn bytes(field: &str, value: i64) -> Result<Option<i64>, SpecError> {
    match value {
        0 => Ok(None),
        -1.. => Ok(Some(value)),
        _ => Err(SpecError::invalid(field, format!("{value} is negative; -1 is unlimited"))),
    }
}

fn hugepages(field: &str, messages: Vec<v1::HugepageLimit>) -> Result<BTreeMap<String, u64>, SpecError> {
    let mut limits = BTreeMap::new();
    for (index, v1::HugepageLimit { page_size, limit }) in messages.into_iter().enumerate() {
        let field = format!("{field}[{index}].page_size");
        let digits = page_size.trim_end_matches(|unit: char| unit.is_ascii_uppercase());
        let is_number = !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit());
        if !is_number || !matches!(&page_size[digits.len()..], "KB" | "MB" | "GB") {
            return Err(SpecError::invalid(
                field,
                format!("{page_size:?} is no page size such as 2MB or 1GB"),
            ));
        }
        if limits.insert(page_size.clone(), limit).is_some() {
            return Err(SpecError::invalid(field, format!("{page_size:?} is there twice")));
        }
    }
    Ok(limits)
}

/// Lists as cpuset(7) defines them: `0-3,7`.
fn cpu_list(field: &str, list: &str) -> Result<(), SpecError> {
    let number = |text: &str| text.parse::<u16>().is_ok() && text.bytes().all(|digit| digit.is_ascii_digit());
    let range = |text: &str| match text.split_once('-') {
        Some((first, last)) => number(first) && number(last),
        None => number(text),
    };
    if list.is_empty() || list.split(',').all(range) {
        return Ok(());
    }
    Err(SpecError::invalid(field, format!("{list:?} is no list such as 0-3,7")))
}

/// The name of a file of a control group: `memory.high`.
fn unified_file(field: &str, name: &str) -> Result<(), SpecError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name.split_once('.') {
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() && name.bytes().all(plain) => {
            Ok(())
        }
        _ => Err(SpecError::invalid(field, "is no file of a control group such as memory.high")),
    }
}

/// The limits as a container's status says them.
pub(super) fn message(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: signed(resources.cpu_period_micros.unwrap_or(0)),
        cpu_quota: resources.cpu_quota_micros.unwrap_or(0),
        cpu_shares: signed(resources.cpu_shares.unwrap_or(0)),
        memory_limit_in_bytes: resources.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: i64::from(resources.oom_score_adj.unwrap_or(0)),
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| v1::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: resources.unified.clone(),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes.unwrap_or(0),
    }
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> v1::LinuxContainerResources {
        v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            oom_score_adj: -500,
            cpuset_cpus: "0-1,7".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![v1::HugepageLimit { page_size: "2MB".into(), limit: 0 }],
            unified: BTreeMap::from([("memory.high".into(), "max".into())]),
            memory_swap_limit_in_bytes: 128 << 20,
        }
    }

    #[test]
    fn limits_are_kept_and_said_again() {
        for original in [some(), v1::LinuxContainerResources::default()] {
            assert_eq!(message(&resources("r", original.clone()).unwrap()), original);
        }
        let unlimited = resources(
            "r",
            v1::LinuxContainerResources {
                cpu_quota: -100_000,
                memory_limit_in_bytes: -1,
                ..Default::default()
            },
        )
        .unwrap();
        assert_eq!(unlimited.cpu_quota_micros, Some(-1));
        assert_eq!(unlimited.memory_limit_bytes, Some(-1));
    }

    /// The numbers of a cgroup without a limit, and the same less an overhead.
    #[test]
    fn every_word_for_no_memory_limit() {
        const V1: i64 = 0x7fff_ffff_ffff_f000;
        for limit in [-1, -1 - (160 << 20), V1, V1 - (160 << 20), i64::MAX, i64::MIN] {
            let message = v1::LinuxContainerResources { memory_limit_in_bytes: limit, ..Default::default() };
            assert_eq!(resources("r", message).unwrap().memory_limit_bytes, Some(-1), "{limit}");
        }
    }

    #[test]
    fn nonsense_is_refused_by_name() {
        type Change = fn(&mut v1::LinuxContainerResources);
        let cases: [(&str, Change); 13] = [
            ("r.cpu_period", |r| r.cpu_period = -1),
            ("r.cpu_period", |r| r.cpu_period = 10),
            ("r.cpu_quota", |r| r.cpu_quota = 10),
            ("r.cpu_shares", |r| r.cpu_shares = -5),
            ("r.memory_swap_limit_in_bytes", |r| r.memory_swap_limit_in_bytes = i64::MIN),
            ("r.memory_swap_limit_in_bytes", |r| r.memory_swap_limit_in_bytes = 1),
            ("r.oom_score_adj", |r| r.oom_score_adj = 1001),
            ("r.oom_score_adj", |r| r.oom_score_adj = i64::MAX),
            ("r.cpuset_cpus", |r| r.cpuset_cpus = "0-".into()),
            ("r.cpuset_mems", |r| r.cpuset_mems = "1\n2".into()),
            ("r.hugepage_limits[0].page_size", |r| r.hugepage_limits[0].page_size = "2".into()),
            ("r.hugepage_limits[1].page_size", |r| r.hugepage_limits.push(r.hugepage_limits[0].clone())),
            ("r.unified[../x.y]", |r| drop(r.unified.insert("../x.y".into(), String::new()))),
        ];
        for (field, change) in cases {
            let mut message = some();
            change(&mut message);
            let error = resources("r", message).unwrap_err();
            assert!(matches!(&error, SpecError::Invalid { field: named, .. } if named == field), "{error}");
        }
    }
}
