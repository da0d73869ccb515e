//! Captures frames from an interface through libpcap: a ring that the kernel fills and this process maps.
//!
//! A frame is handed out where it lies in the ring, nothing is copied here. What the kernel or the interface had no room
//! for is counted. Needs CAP_NET_RAW while it is opened, and no longer.

use crate::decode::LinkType;
use pcap::{Active, Capture, Device, Linktype, Precision};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel may keep a block of frames that is not full.
const BLOCK_TIMEOUT: Duration = Duration::from_millis(50);
/// On a quiet link, every frame older than this has been handed out: the block timeout, with room for a busy machine.
const SETTLED: Duration = Duration::from_millis(250);
/// Bytes a second that a ring has to take while nobody looks: about what the smallest frames fill at 10 Gbit/s, and more
/// than full ones do.
const FASTEST: u64 = 2 << 30;
/// Frames handed out by one call at most, so that whoever calls looks up now and then.
const AT_ONCE: usize = 16 << 10;
/// Passes nothing: no frame is that long.
const NOTHING: &str = "greater 1000000000";

/// What to capture and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The interface; `any` is all of them.
    pub interface: String,
    /// A filter in libpcap's language; the kernel applies it.
    pub filter: Option<String>,
    /// Bytes kept of a frame.
    pub snaplen: u32,
    /// Bytes of the kernel's ring.
    pub ring: u64,
    /// Whether frames for other hosts are wanted too.
    pub promiscuous: bool,
    /// Whether each frame has to tell its interface. Of `any`, link headers are then `LINUX_SLL2`, of 20 bytes; else
    /// they are `LINUX_SLL`, of 16 bytes, which tell none.
    pub names_interfaces: bool,
}

/// An interface that cannot be captured, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// It cannot be opened.
    #[error("cannot capture on {interface}: {why}")]
    Open {
        /// The interface.
        interface: String,
        /// libpcap's word.
        why: String,
    },
    /// libpcap refuses the filter.
    #[error("filter `{filter}` cannot be used on {interface}: {why}")]
    Filter {
        /// The expression.
        filter: String,
        /// The interface.
        interface: String,
        /// libpcap's word.
        why: String,
    },
    /// It went away while it was captured.
    #[error("capture on {interface} has ended: {why}")]
    Ended {
        /// The interface.
        interface: String,
        /// libpcap's word.
        why: String,
    },
}

/// Frames that never came to this process, since the capture began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drops {
    /// The ring was full.
    pub kernel: u64,
    /// The interface had no room.
    pub interface: u64,
}

/// An interface that is being captured.
pub struct Live {
    capture: Capture<Active>,
    options: Options,
    link: LinkType,
    drops: Drops,
    /// A pause after frames, so that one look finds several blocks: to be woken for each costs more than the frames in it.
    pause: Duration,
    found: usize,
    /// libpcap's counters as they were last seen; they have 32 bits.
    seen: (u32, u32),
}

/// Names of all interfaces, each with a word on it.
pub fn interfaces() -> Result<Vec<(String, String)>, LiveError> {
    let devices = Device::list()
        .map_err(|error| LiveError::Open { interface: "any interface".into(), why: error.to_string() })?;
    Ok(devices.into_iter().map(|device| (device.name, device.desc.unwrap_or_default())).collect())
}

impl Live {
    /// Opens an interface; frames are captured from now on.
    pub fn open(options: &Options) -> Result<Self, LiveError> {
        let mut live = Self::open_shut(options)?;
        live.start()?;
        Ok(live)
    }

    /// Opens an interface and lets no frame through yet.
    pub fn open_shut(options: &Options) -> Result<Self, LiveError> {
        let failed = |error: pcap::Error| {
            let hint = match &error {
                pcap::Error::PcapError(text) if text.contains("ermi") => {
                    "; run it as root or give the program CAP_NET_RAW"
                }
                _ => "",
            };
            let why = format!("{}{hint}", plain(&error));
            LiveError::Open { interface: options.interface.clone(), why }
        };
        let capture = Capture::from_device(options.interface.as_str())
            .map_err(failed)?
            // `any` knows no promiscuous mode.
            .promisc(options.promiscuous && options.interface != "any")
            .snaplen(options.snaplen.try_into().unwrap_or(i32::MAX))
            .buffer_size(options.ring.try_into().unwrap_or(i32::MAX))
            .timeout(BLOCK_TIMEOUT.as_millis() as i32)
            .precision(Precision::Nano)
            .open()
            .and_then(Capture::setnonblock)
            .and_then(|mut capture| {
                if options.names_interfaces && options.interface == "any" {
                    capture.set_datalink(Linktype(LinkType::LINUX_SLL2.0 as i32))?;
                }
                Ok(capture)
            })
            .map_err(failed)?;
        let link = LinkType(capture.get_datalink().0 as u32);
        let mut live = Self {
            capture,
            options: options.clone(),
            link,
            drops: Drops::default(),
            pause: Duration::from_nanos(options.ring.saturating_mul(1_000_000_000) / FASTEST)
                .min(BLOCK_TIMEOUT),
            found: 0,
            seen: (0, 0),
        };
        live.filter(NOTHING)?;
        Ok(live)
    }

    /// Lets frames through that pass the filter; those that were caught while it was opened are passed over.
    pub fn start(&mut self) -> Result<(), LiveError> {
        let until = SystemTime::now() + 2 * BLOCK_TIMEOUT;
        while SystemTime::now() < until {
            self.next(BLOCK_TIMEOUT, |_, _, _| {})?;
        }
        self.read_counters();
        self.drops = Drops::default();
        let filter = self.options.filter.clone().unwrap_or_default();
        self.filter(&filter)
    }

    fn filter(&mut self, filter: &str) -> Result<(), LiveError> {
        self.capture.filter(filter, true).map_err(|error| LiveError::Filter {
            filter: filter.to_owned(),
            interface: self.options.interface.clone(),
            why: plain(&error),
        })
    }

    /// What the frames are.
    pub fn link(&self) -> LinkType {
        self.link
    }

    /// The socket, to join a group.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.capture.as_fd()
    }

    /// Hands out frames (time in nanoseconds since the Unix epoch, length on the wire, captured bytes), waiting so long
    /// for the first, less than a second. Gives how many there were.
    pub fn next(
        &mut self,
        wait: Duration,
        mut visit: impl FnMut(u64, u32, &[u8]),
    ) -> Result<usize, LiveError> {
        if (1..AT_ONCE).contains(&self.found) {
            std::thread::sleep(self.pause);
        }
        if self.found > 0 {
            // Mostly there are more by now, and to ask takes the lock under which the kernel fills the ring.
            self.found = self.hand_out(&mut visit)?;
        }
        if self.found == 0 {
            self.wait(wait)?;
            self.found = self.hand_out(&mut visit)?;
        }
        Ok(self.found)
    }

    fn wait(&self, most: Duration) -> Result<(), LiveError> {
        let mut sockets = [PollFd::new(&self.capture, PollFlags::IN)];
        let wait = Timespec { tv_sec: 0, tv_nsec: i64::from(most.subsec_nanos()) };
        match poll(&mut sockets, Some(&wait)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(self.ended(error.to_string())),
        }
    }

    fn hand_out(&mut self, visit: &mut impl FnMut(u64, u32, &[u8])) -> Result<usize, LiveError> {
        let handed = self.capture.dispatch(Some(AT_ONCE), |packet| {
            let stamp = packet.header.ts;
            let seconds = u64::try_from(stamp.tv_sec).unwrap_or(0);
            let time = seconds.saturating_mul(1_000_000_000).saturating_add(stamp.tv_usec as u64);
            visit(time, packet.header.len, packet.data);
        });
        handed.map_err(|error| self.ended(plain(&error)))
    }

    fn ended(&self, why: String) -> LiveError {
        LiveError::Ended { interface: self.options.interface.clone(), why }
    }

    /// What has been lost so far.
    pub fn drops(&mut self) -> Drops {
        self.read_counters();
        self.drops
    }

    fn read_counters(&mut self) {
        // What cannot be read now is read the next time: the counters only grow.
        if let Ok(stat) = self.capture.stats() {
            let (kernel, interface) = self.seen;
            self.drops.kernel += u64::from(stat.dropped.wrapping_sub(kernel));
            self.drops.interface += u64::from(stat.if_dropped.wrapping_sub(interface));
            self.seen = (stat.dropped, stat.if_dropped);
        }
    }
}

/// The clock, nanoseconds since the Unix epoch.
pub fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The time that a quiet link has passed: called before a look that found no frame, no earlier frame comes after it.
pub fn settled(clock: u64) -> u64 {
    clock.saturating_sub(SETTLED.as_nanos() as u64)
}

fn plain(error: &pcap::Error) -> String {
    match error {
        pcap::Error::PcapError(text) => text.clone(),
        other => other.to_string(),
    }
}
