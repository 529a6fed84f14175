//! The fields of the requests that neither make pods and containers nor connect
//! to them.

use super::{OUTPUT_ONLY, SIZES_NOTHING, Support};

use Support::{Honoured, NotApplicable, Refused, VmOnly};

const BY_NAME: &str = "an image is found by its name, digest or id alone";
const EVERY_POD: &str = "a pull is the same for every pod";
const NO_CHECKPOINTS: &str = "the call is not implemented";
const OF_MACHINES: &str = "makes a virtual machine larger; the kubelet itself limits the pod's cgroup";

pub(super) type Rows = &'static [(&'static str, Support)];

const POD: Rows = &[("pod_sandbox_id", Honoured)];
const CONTAINER: Rows = &[("container_id", Honoured)];
const NOTHING: Rows = &[];
const PODS: Rows =
    &[("filter.id", Honoured), ("filter.state.state", Honoured), ("filter.label_selector", Honoured)];
const CONTAINERS: Rows = &[
    ("filter.id", Honoured),
    ("filter.state.state", Honoured),
    ("filter.pod_sandbox_id", Honoured),
    ("filter.label_selector", Honoured),
];
const POD_STATS: Rows = &[("filter.id", Honoured), ("filter.label_selector", Honoured)];
const CONTAINER_STATS: Rows =
    &[("filter.id", Honoured), ("filter.pod_sandbox_id", Honoured), ("filter.label_selector", Honoured)];
const IMAGES: Rows = &[
    ("filter.image.image", Honoured),
    ("filter.image.annotations", NotApplicable(BY_NAME)),
    ("filter.image.user_specified_image", NotApplicable(BY_NAME)),
    ("filter.image.runtime_handler", Honoured),
    ("filter.image.image_ref", NotApplicable(OUTPUT_ONLY)),
];

/// All of them, in the order of the interface.
pub(super) const REQUESTS: &[(&str, Rows)] = &[
    ("VersionRequest", &[("version", NotApplicable("kina speaks v1 whatever its caller speaks"))]),
    ("StopPodSandboxRequest", POD),
    ("RemovePodSandboxRequest", POD),
    ("PodSandboxStatusRequest", &[("pod_sandbox_id", Honoured), ("verbose", Honoured)]),
    ("ListPodSandboxRequest", PODS),
    ("StreamPodSandboxesRequest", PODS),
    ("StartContainerRequest", CONTAINER),
    ("StopContainerRequest", &[("container_id", Honoured), ("timeout", Honoured)]),
    ("RemoveContainerRequest", CONTAINER),
    ("ListContainersRequest", CONTAINERS),
    ("StreamContainersRequest", CONTAINERS),
    ("ContainerStatusRequest", &[("container_id", Honoured), ("verbose", Honoured)]),
    ("UpdateContainerResourcesRequest", UPDATE_CONTAINER),
    ("ReopenContainerLogRequest", CONTAINER),
    ("ExecSyncRequest", &[("container_id", Honoured), ("cmd", Honoured), ("timeout", Honoured)]),
    ("ContainerStatsRequest", CONTAINER),
    ("ListContainerStatsRequest", CONTAINER_STATS),
    ("StreamContainerStatsRequest", CONTAINER_STATS),
    ("PodSandboxStatsRequest", POD),
    ("ListPodSandboxStatsRequest", POD_STATS),
    ("StreamPodSandboxStatsRequest", POD_STATS),
    (
        "UpdateRuntimeConfigRequest",
        &[(
            "runtime_config.network_config.pod_cidr",
            NotApplicable(
                "it must be address ranges; network plugins have theirs from their configuration or from \
                 the cluster",
            ),
        )],
    ),
    ("StatusRequest", &[("verbose", Honoured)]),
    (
        "CheckpointContainerRequest",
        &[
            ("container_id", Refused(NO_CHECKPOINTS)),
            ("location", Refused(NO_CHECKPOINTS)),
            ("timeout", Refused(NO_CHECKPOINTS)),
        ],
    ),
    (
        "CheckpointPodRequest",
        &[
            ("pod_sandbox_id", Refused(NO_CHECKPOINTS)),
            ("output_path", Refused(NO_CHECKPOINTS)),
            ("container_ids", Refused(NO_CHECKPOINTS)),
            ("options", Refused(NO_CHECKPOINTS)),
        ],
    ),
    (
        "RestorePodRequest",
        &[
            ("checkpoint_path", Refused(NO_CHECKPOINTS)),
            ("config", Refused(NO_CHECKPOINTS)),
            ("runtime_handler", Refused(NO_CHECKPOINTS)),
            ("options", Refused(NO_CHECKPOINTS)),
            ("container_configs", Refused(NO_CHECKPOINTS)),
        ],
    ),
    ("GetEventsRequest", NOTHING),
    ("ListMetricDescriptorsRequest", NOTHING),
    ("ListPodSandboxMetricsRequest", NOTHING),
    ("StreamPodSandboxMetricsRequest", NOTHING),
    ("RuntimeConfigRequest", NOTHING),
    ("UpdatePodSandboxResourcesRequest", UPDATE_POD),
    ("ListImagesRequest", IMAGES),
    ("StreamImagesRequest", IMAGES),
    (
        "ImageStatusRequest",
        &[
            ("image.image", Honoured),
            ("image.annotations", NotApplicable(BY_NAME)),
            ("image.user_specified_image", NotApplicable(BY_NAME)),
            ("image.runtime_handler", Honoured),
            ("image.image_ref", NotApplicable(OUTPUT_ONLY)),
            ("verbose", Honoured),
        ],
    ),
    (
        "PullImageRequest",
        &[
            ("image.image", Honoured),
            ("image.annotations", NotApplicable(BY_NAME)),
            ("image.user_specified_image", NotApplicable(BY_NAME)),
            ("image.runtime_handler", Honoured),
            ("image.image_ref", NotApplicable(OUTPUT_ONLY)),
            ("auth.username", Honoured),
            ("auth.password", Honoured),
            ("auth.auth", Honoured),
            ("auth.server_address", Honoured),
            ("auth.identity_token", Honoured),
            ("auth.registry_token", Honoured),
            ("sandbox_config", NotApplicable(EVERY_POD)),
        ],
    ),
    (
        "RemoveImageRequest",
        &[
            ("image.image", Honoured),
            ("image.annotations", NotApplicable(BY_NAME)),
            ("image.user_specified_image", NotApplicable(BY_NAME)),
            ("image.runtime_handler", Honoured),
            ("image.image_ref", NotApplicable(OUTPUT_ONLY)),
        ],
    ),
    ("ImageFsInfoRequest", NOTHING),
];

const UPDATE_CONTAINER: Rows = &[
    ("container_id", Honoured),
    ("linux.cpu_period", Honoured),
    ("linux.cpu_quota", Honoured),
    ("linux.cpu_shares", Honoured),
    ("linux.memory_limit_in_bytes", Honoured),
    ("linux.oom_score_adj", NotApplicable("processes have it from their start, and it is no limit")),
    ("linux.cpuset_cpus", Honoured),
    ("linux.cpuset_mems", Honoured),
    ("linux.hugepage_limits.page_size", Honoured),
    ("linux.hugepage_limits.limit", Honoured),
    ("linux.unified", Honoured),
    ("linux.memory_swap_limit_in_bytes", Honoured),
    ("windows", Refused("Linux containers only")),
    ("annotations", NotApplicable("kina knows none that change a container")),
];

const UPDATE_POD: Rows = &[
    ("pod_sandbox_id", Honoured),
    ("overhead.cpu_period", VmOnly(OF_MACHINES)),
    ("overhead.cpu_quota", VmOnly(OF_MACHINES)),
    ("overhead.cpu_shares", NotApplicable(SIZES_NOTHING)),
    ("overhead.memory_limit_in_bytes", VmOnly(OF_MACHINES)),
    ("overhead.oom_score_adj", NotApplicable(SIZES_NOTHING)),
    ("overhead.cpuset_cpus", NotApplicable(SIZES_NOTHING)),
    ("overhead.cpuset_mems", NotApplicable(SIZES_NOTHING)),
    ("overhead.hugepage_limits", NotApplicable(SIZES_NOTHING)),
    ("overhead.unified", NotApplicable(SIZES_NOTHING)),
    ("overhead.memory_swap_limit_in_bytes", NotApplicable(SIZES_NOTHING)),
    ("resources.cpu_period", VmOnly(OF_MACHINES)),
    ("resources.cpu_quota", VmOnly(OF_MACHINES)),
    ("resources.cpu_shares", NotApplicable(SIZES_NOTHING)),
    ("resources.memory_limit_in_bytes", VmOnly(OF_MACHINES)),
    ("resources.oom_score_adj", NotApplicable(SIZES_NOTHING)),
    ("resources.cpuset_cpus", NotApplicable(SIZES_NOTHING)),
    ("resources.cpuset_mems", NotApplicable(SIZES_NOTHING)),
    ("resources.hugepage_limits", NotApplicable(SIZES_NOTHING)),
    ("resources.unified", NotApplicable(SIZES_NOTHING)),
    ("resources.memory_swap_limit_in_bytes", NotApplicable(SIZES_NOTHING)),
];
