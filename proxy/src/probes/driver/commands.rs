//! What the commands of GPU drivers are called.
//!
//! Why: a command is a number of 32 bits, and a metric that says `0xc020462a` helps nobody. An unknown one is told as its type
//! and number, `0x46/0x2a`.
//!
//! Where the numbers are from, all of them stable interfaces to user space: NVIDIA's open kernel modules (nv_escape.h,
//! nv-ioctl-numbers.h, nv-ioctl-numa.h, uvm_ioctl.h); the kernel's drm.h, amdgpu_drm.h and kfd_ioctl.h. Sizes, which are
//! part of a command too, differ between versions and are left out: RM_ALLOC has the same name with each of them.
//!
//! Left out: what is inside the arguments (a control command of RM_CONTROL, the class of RM_ALLOC, what is wrapped in
//! IOCTL_XFER_CMD), which differs from version to version.

use std::borrow::Cow;

/// Whose numbers a command has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Interface {
    /// NVIDIA's resource manager: `/dev/nvidia0`, `/dev/nvidiactl`.
    Rm,
    /// NVIDIA's unified memory, whose commands are plain small numbers.
    Uvm,
    /// The Direct Rendering Manager, of whichever driver.
    Drm,
    /// The same, of amdgpu.
    Amdgpu,
    /// AMD's compute driver.
    Kfd,
    /// Not known.
    Unknown,
}

/// Numbers and names, in order.
type Table = &'static [(u32, &'static str)];

/// The types of commands: letters, by which drivers tell theirs from others'.
const RM: u32 = b'F' as u32;
const DRM: u32 = b'd' as u32;
const KFD: u32 = b'K' as u32;

/// The numbers of DRM that each driver has for itself.
const DRM_OWN: std::ops::Range<u32> = 0x40..0xa0;

impl Interface {
    /// What a command is called.
    pub(super) fn name(self, command: u32) -> Cow<'static, str> {
        let (kind, number) = (command >> 8 & 0xff, command & 0xff);
        let found = match (self, kind) {
            (Interface::Uvm, _) => find(UVM_COMMANDS, command),
            (Interface::Rm, RM) => find(RM_COMMANDS, number),
            (Interface::Amdgpu, DRM) if DRM_OWN.contains(&number) => find(AMDGPU_COMMANDS, number),
            (Interface::Drm | Interface::Amdgpu, DRM) => find(DRM_COMMANDS, number),
            (Interface::Kfd, KFD) => find(KFD_COMMANDS, number),
            _ => None,
        };
        found.map_or_else(|| format!("{kind:#04x}/{number:#04x}").into(), Cow::Borrowed)
    }

    /// Whether the command is there to wait for something, for however long: not to return is what it is for.
    pub(super) fn waits(self, command: u32) -> bool {
        WAITING.contains(&&*self.name(command))
    }
}

fn find(table: Table, number: u32) -> Option<&'static str> {
    let at = table.binary_search_by_key(&number, |(number, _)| *number).ok()?;
    table.get(at).map(|(_, name)| *name)
}

const WAITING: &[&str] = &[
    "AMDKFD_IOC_WAIT_EVENTS",
    "DRM_AMDGPU_GEM_WAIT_IDLE",
    "DRM_AMDGPU_USERQ_WAIT",
    "DRM_AMDGPU_WAIT_CS",
    "DRM_AMDGPU_WAIT_FENCES",
    "DRM_SYNCOBJ_TIMELINE_WAIT",
    "DRM_SYNCOBJ_WAIT",
    "DRM_WAIT_VBLANK",
];

const RM_COMMANDS: Table = &[
    (0x27, "NV_ESC_RM_ALLOC_MEMORY"),
    (0x28, "NV_ESC_RM_ALLOC_OBJECT"),
    (0x29, "NV_ESC_RM_FREE"),
    (0x2a, "NV_ESC_RM_CONTROL"),
    (0x2b, "NV_ESC_RM_ALLOC"),
    (0x34, "NV_ESC_RM_DUP_OBJECT"),
    (0x35, "NV_ESC_RM_SHARE"),
    (0x39, "NV_ESC_RM_I2C_ACCESS"),
    (0x41, "NV_ESC_RM_IDLE_CHANNELS"),
    (0x4a, "NV_ESC_RM_VID_HEAP_CONTROL"),
    (0x4d, "NV_ESC_RM_ACCESS_REGISTRY"),
    (0x4e, "NV_ESC_RM_MAP_MEMORY"),
    (0x4f, "NV_ESC_RM_UNMAP_MEMORY"),
    (0x52, "NV_ESC_RM_GET_EVENT_DATA"),
    (0x54, "NV_ESC_RM_ALLOC_CONTEXT_DMA2"),
    (0x56, "NV_ESC_RM_ADD_VBLANK_CALLBACK"),
    (0x57, "NV_ESC_RM_MAP_MEMORY_DMA"),
    (0x58, "NV_ESC_RM_UNMAP_MEMORY_DMA"),
    (0x59, "NV_ESC_RM_BIND_CONTEXT_DMA"),
    (0x5c, "NV_ESC_RM_EXPORT_OBJECT_TO_FD"),
    (0x5d, "NV_ESC_RM_IMPORT_OBJECT_FROM_FD"),
    (0x5e, "NV_ESC_RM_UPDATE_DEVICE_MAPPING_INFO"),
    (0x5f, "NV_ESC_RM_LOCKLESS_DIAGNOSTIC"),
    (200, "NV_ESC_CARD_INFO"),
    (201, "NV_ESC_REGISTER_FD"),
    (206, "NV_ESC_ALLOC_OS_EVENT"),
    (207, "NV_ESC_FREE_OS_EVENT"),
    (209, "NV_ESC_STATUS_CODE"),
    (210, "NV_ESC_CHECK_VERSION_STR"),
    (211, "NV_ESC_IOCTL_XFER_CMD"),
    (212, "NV_ESC_ATTACH_GPUS_TO_FD"),
    (213, "NV_ESC_QUERY_DEVICE_INTR"),
    (214, "NV_ESC_SYS_PARAMS"),
    (215, "NV_ESC_NUMA_INFO"),
    (216, "NV_ESC_SET_NUMA_STATUS"),
    (217, "NV_ESC_EXPORT_TO_DMABUF_FD"),
    (218, "NV_ESC_WAIT_OPEN_COMPLETE"),
];

const UVM_COMMANDS: Table = &[
    (1, "UVM_RESERVE_VA"),
    (2, "UVM_RELEASE_VA"),
    (17, "UVM_EVENT_CTRL"),
    (23, "UVM_CREATE_RANGE_GROUP"),
    (24, "UVM_DESTROY_RANGE_GROUP"),
    (25, "UVM_REGISTER_GPU_VASPACE"),
    (26, "UVM_UNREGISTER_GPU_VASPACE"),
    (27, "UVM_REGISTER_CHANNEL"),
    (28, "UVM_UNREGISTER_CHANNEL"),
    (29, "UVM_ENABLE_PEER_ACCESS"),
    (30, "UVM_DISABLE_PEER_ACCESS"),
    (31, "UVM_SET_RANGE_GROUP"),
    (33, "UVM_MAP_EXTERNAL_ALLOCATION"),
    (34, "UVM_FREE"),
    (35, "UVM_MEM_MAP"),
    (37, "UVM_REGISTER_GPU"),
    (38, "UVM_UNREGISTER_GPU"),
    (39, "UVM_PAGEABLE_MEM_ACCESS"),
    (42, "UVM_SET_PREFERRED_LOCATION"),
    (46, "UVM_SET_ACCESSED_BY"),
    (51, "UVM_MIGRATE"),
    (53, "UVM_MIGRATE_RANGE_GROUP"),
    (65, "UVM_MAP_DYNAMIC_PARALLELISM_REGION"),
    (66, "UVM_UNMAP_EXTERNAL"),
    (68, "UVM_ALLOC_SEMAPHORE_POOL"),
    (69, "UVM_CLEAN_UP_ZOMBIE_RESOURCES"),
    (70, "UVM_PAGEABLE_MEM_ACCESS_ON_GPU"),
    (71, "UVM_POPULATE_PAGEABLE"),
    (72, "UVM_VALIDATE_VA_RANGE"),
    (73, "UVM_CREATE_EXTERNAL_RANGE"),
    (74, "UVM_MAP_EXTERNAL_SPARSE"),
    (75, "UVM_MM_INITIALIZE"),
    (78, "UVM_ALLOC_DEVICE_P2P"),
    (79, "UVM_CLEAR_ALL_ACCESS_COUNTERS"),
    (80, "UVM_DISCARD"),
    (0x3000_0001, "UVM_INITIALIZE"),
    (0x3000_0002, "UVM_DEINITIALIZE"),
];

const DRM_COMMANDS: Table = &[
    (0x00, "DRM_VERSION"),
    (0x01, "DRM_GET_UNIQUE"),
    (0x02, "DRM_GET_MAGIC"),
    (0x05, "DRM_GET_CLIENT"),
    (0x07, "DRM_SET_VERSION"),
    (0x09, "DRM_GEM_CLOSE"),
    (0x0a, "DRM_GEM_FLINK"),
    (0x0b, "DRM_GEM_OPEN"),
    (0x0c, "DRM_GET_CAP"),
    (0x0d, "DRM_SET_CLIENT_CAP"),
    (0x11, "DRM_AUTH_MAGIC"),
    (0x1e, "DRM_SET_MASTER"),
    (0x1f, "DRM_DROP_MASTER"),
    (0x2d, "DRM_PRIME_HANDLE_TO_FD"),
    (0x2e, "DRM_PRIME_FD_TO_HANDLE"),
    (0x3a, "DRM_WAIT_VBLANK"),
    (0xbf, "DRM_SYNCOBJ_CREATE"),
    (0xc0, "DRM_SYNCOBJ_DESTROY"),
    (0xc1, "DRM_SYNCOBJ_HANDLE_TO_FD"),
    (0xc2, "DRM_SYNCOBJ_FD_TO_HANDLE"),
    (0xc3, "DRM_SYNCOBJ_WAIT"),
    (0xc4, "DRM_SYNCOBJ_RESET"),
    (0xc5, "DRM_SYNCOBJ_SIGNAL"),
    (0xca, "DRM_SYNCOBJ_TIMELINE_WAIT"),
    (0xcb, "DRM_SYNCOBJ_QUERY"),
    (0xcc, "DRM_SYNCOBJ_TRANSFER"),
    (0xcd, "DRM_SYNCOBJ_TIMELINE_SIGNAL"),
    (0xcf, "DRM_SYNCOBJ_EVENTFD"),
];

const AMDGPU_COMMANDS: Table = &[
    (0x40, "DRM_AMDGPU_GEM_CREATE"),
    (0x41, "DRM_AMDGPU_GEM_MMAP"),
    (0x42, "DRM_AMDGPU_CTX"),
    (0x43, "DRM_AMDGPU_BO_LIST"),
    (0x44, "DRM_AMDGPU_CS"),
    (0x45, "DRM_AMDGPU_INFO"),
    (0x46, "DRM_AMDGPU_GEM_METADATA"),
    (0x47, "DRM_AMDGPU_GEM_WAIT_IDLE"),
    (0x48, "DRM_AMDGPU_GEM_VA"),
    (0x49, "DRM_AMDGPU_WAIT_CS"),
    (0x50, "DRM_AMDGPU_GEM_OP"),
    (0x51, "DRM_AMDGPU_GEM_USERPTR"),
    (0x52, "DRM_AMDGPU_WAIT_FENCES"),
    (0x53, "DRM_AMDGPU_VM"),
    (0x54, "DRM_AMDGPU_FENCE_TO_HANDLE"),
    (0x55, "DRM_AMDGPU_SCHED"),
    (0x56, "DRM_AMDGPU_USERQ"),
    (0x57, "DRM_AMDGPU_USERQ_SIGNAL"),
    (0x58, "DRM_AMDGPU_USERQ_WAIT"),
    (0x59, "DRM_AMDGPU_GEM_LIST_HANDLES"),
];

const KFD_COMMANDS: Table = &[
    (0x01, "AMDKFD_IOC_GET_VERSION"),
    (0x02, "AMDKFD_IOC_CREATE_QUEUE"),
    (0x03, "AMDKFD_IOC_DESTROY_QUEUE"),
    (0x04, "AMDKFD_IOC_SET_MEMORY_POLICY"),
    (0x05, "AMDKFD_IOC_GET_CLOCK_COUNTERS"),
    (0x06, "AMDKFD_IOC_GET_PROCESS_APERTURES"),
    (0x07, "AMDKFD_IOC_UPDATE_QUEUE"),
    (0x08, "AMDKFD_IOC_CREATE_EVENT"),
    (0x09, "AMDKFD_IOC_DESTROY_EVENT"),
    (0x0a, "AMDKFD_IOC_SET_EVENT"),
    (0x0b, "AMDKFD_IOC_RESET_EVENT"),
    (0x0c, "AMDKFD_IOC_WAIT_EVENTS"),
    (0x11, "AMDKFD_IOC_SET_SCRATCH_BACKING_VA"),
    (0x12, "AMDKFD_IOC_GET_TILE_CONFIG"),
    (0x13, "AMDKFD_IOC_SET_TRAP_HANDLER"),
    (0x14, "AMDKFD_IOC_GET_PROCESS_APERTURES_NEW"),
    (0x15, "AMDKFD_IOC_ACQUIRE_VM"),
    (0x16, "AMDKFD_IOC_ALLOC_MEMORY_OF_GPU"),
    (0x17, "AMDKFD_IOC_FREE_MEMORY_OF_GPU"),
    (0x18, "AMDKFD_IOC_MAP_MEMORY_TO_GPU"),
    (0x19, "AMDKFD_IOC_UNMAP_MEMORY_FROM_GPU"),
    (0x1a, "AMDKFD_IOC_SET_CU_MASK"),
    (0x1b, "AMDKFD_IOC_GET_QUEUE_WAVE_STATE"),
    (0x1c, "AMDKFD_IOC_GET_DMABUF_INFO"),
    (0x1d, "AMDKFD_IOC_IMPORT_DMABUF"),
    (0x1e, "AMDKFD_IOC_ALLOC_QUEUE_GWS"),
    (0x1f, "AMDKFD_IOC_SMI_EVENTS"),
    (0x20, "AMDKFD_IOC_SVM"),
    (0x21, "AMDKFD_IOC_SET_XNACK_MODE"),
    (0x22, "AMDKFD_IOC_CRIU_OP"),
    (0x23, "AMDKFD_IOC_AVAILABLE_MEMORY"),
    (0x24, "AMDKFD_IOC_EXPORT_DMABUF"),
    (0x25, "AMDKFD_IOC_RUNTIME_ENABLE"),
    (0x26, "AMDKFD_IOC_DBG_TRAP"),
    (0x27, "AMDKFD_IOC_CREATE_PROCESS"),
];

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: [Table; 5] =
        [RM_COMMANDS, UVM_COMMANDS, DRM_COMMANDS, AMDGPU_COMMANDS, KFD_COMMANDS];

    #[test]
    fn tables_are_in_order_and_every_name_is_one_commands() {
        let mut names = Vec::new();
        for table in TABLES {
            assert!(table.is_sorted_by(|a, b| a.0 < b.0), "{table:x?}");
            names.extend(table.iter().map(|(_, name)| *name));
        }
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        for name in WAITING {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn commands_have_the_names_of_their_interface() {
        let named = [
            (Interface::Rm, 0xc020_462a, "NV_ESC_RM_CONTROL"),
            (Interface::Rm, 0xc030_462b, "NV_ESC_RM_ALLOC"),
            (Interface::Rm, 0xc020_462b, "NV_ESC_RM_ALLOC"),
            (Interface::Rm, 0xc010_46d3, "NV_ESC_IOCTL_XFER_CMD"),
            (Interface::Rm, 0x5401, "0x54/0x01"),
            (Interface::Uvm, 27, "UVM_REGISTER_CHANNEL"),
            (Interface::Uvm, 0x3000_0001, "UVM_INITIALIZE"),
            (Interface::Uvm, 3, "0x00/0x03"),
            (Interface::Drm, 0xc010_6400, "DRM_VERSION"),
            (Interface::Drm, 0xc018_6444, "0x64/0x44"),
            (Interface::Amdgpu, 0xc018_6444, "DRM_AMDGPU_CS"),
            (Interface::Amdgpu, 0xc028_64c3, "DRM_SYNCOBJ_WAIT"),
            (Interface::Kfd, 0xc018_4b0c, "AMDKFD_IOC_WAIT_EVENTS"),
            (Interface::Unknown, 0xc020_462a, "0x46/0x2a"),
        ];
        for (interface, command, name) in named {
            assert_eq!(interface.name(command), name, "{interface:?} {command:#x}");
        }
    }

    #[test]
    fn only_what_is_there_to_wait_waits() {
        assert!(Interface::Kfd.waits(0xc018_4b0c));
        assert!(Interface::Amdgpu.waits(0xc020_6449));
        assert!(!Interface::Drm.waits(0xc020_6449), "another driver's command of this number");
        assert!(!Interface::Rm.waits(0xc020_462a));
        assert!(!Interface::Unknown.waits(0));
    }
}
