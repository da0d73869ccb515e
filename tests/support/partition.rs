//! Three machines on one switch, each a network namespace: cables can be pulled, and the switch may be bad.
//!
//! Needs root; all of it is gone when dropped. A pulled cable tells nobody: no packet goes through, not even
//! one that says so. The bad switch is some Perl: the kernel's own means (netem) is not part of every kernel.

use super::live::{Live, tool};
use std::net::Ipv4Addr;
use std::process::Command;

/// Machines on the switch.
pub const MACHINES: usize = 3;

/// Holds its namespace until it is killed.
const HOLDER: &str = r#"print STDERR "held\n"; <STDIN>"#;

/// Passes frames between the interfaces that it is given until its standard input is closed, then says how
/// many. A frame is held for 5 ms, but one of four is not and so overtakes; one of twenty is passed twice.
/// The address of a machine's interface ends in the number of its port, from 1. All the time that it knows of
/// is what it has waited.
const BAD_SWITCH: &str = r#"
use Socket;
my ($clock, $all, $early, $twice, $watched, @ports, @held) = (0, 0, 0, 0, "");
for (@ARGV) {
    socket(my $port, 17, SOCK_RAW, unpack("S", pack("n", 3))) or die "no socket: $!";
    ioctl($port, 0x8933, my $request = pack("a16 x24", $_)) or die "no interface $_: $!";
    # Frames come and go with what their sender left to its device (checksums and segments to be made); those
    # that go do not come back.
    setsockopt($port, 263, $_, 1) or die "no option $_: $!" for 15, 23;
    bind($port, pack("S n i x12", 17, 3, unpack("x16 i", $request))) or die "no frames: $!";
    push @ports, $port;
}
vec($watched, fileno($_), 1) = 1 for \*STDIN, @ports;
srand(1);
sub pass {
    my ($from, $frame) = @_;
    my ($first, $last) = unpack("x10 C x4 C", $frame);
    for (grep { $_ != $from } 0 .. $#ports) {
        send($ports[$_], $frame, 0) if $first & 1 || $last == $_ + 1;
    }
}
print STDERR "switching\n";
for (;;) {
    my $wait = @held ? $held[0][0] - $clock : 60;
    my (undef, $left) = select(my $ready = $watched, undef, undef, $wait);
    $clock += $wait - $left;
    last if vec($ready, fileno(STDIN), 1);
    for (grep { vec($ready, fileno($ports[$_]), 1) } 0 .. $#ports) {
        defined recv($ports[$_], my $frame, 1 << 17, 0) or next;
        $all++;
        if (rand() < 0.25) { $early++; pass($_, $frame) } else { push @held, [$clock + 0.005, $_, $frame] }
        if (rand() < 0.05) { $twice++; push @held, [$clock + 0.005, $_, $frame] }
    }
    while (@held && $held[0][0] <= $clock) { my (undef, @frame) = @{shift @held}; pass(@frame) }
}
print STDERR "$all frames, $early overtook, $twice twice\n";
"#;

fn hold() -> Live {
    let mut command = Command::new(tool("unshare"));
    command.arg("-n").arg(tool("perl")).args(["-e", HOLDER]);
    let mut holder = Live::start(command);
    holder.wait_until_says("held");
    holder
}

/// A program in the namespace that a process holds.
fn inside(holder: &Live, program: &str) -> Command {
    let mut command = Command::new(tool("nsenter"));
    command.args(["-t", &holder.id().to_string(), "-n", "--", program]);
    command
}

fn ip(holder: &Live, args: &str) {
    let ip = tool("ip");
    let output = inside(holder, ip.to_str().unwrap()).args(args.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {args}: {output:?}");
}

/// The machines and what joins them.
pub struct Network {
    machines: Vec<Live>,
    switch: Live,
    bad: Option<Live>,
}

impl Network {
    /// Machines on a switch that passes on what it gets, at once.
    pub fn new() -> Self {
        let network = Self::wired();
        ip(&network.switch, "link add hub type bridge");
        ip(&network.switch, "link set hub up");
        for machine in 0..MACHINES {
            ip(&network.switch, &format!("link set port{machine} master hub"));
        }
        network
    }

    /// Machines on a switch that delays frames, changes their order and passes some of them twice.
    pub fn with_bad_switch() -> Self {
        let mut network = Self::wired();
        let perl = tool("perl");
        let mut command = inside(&network.switch, perl.to_str().unwrap());
        command.args(["-e", BAD_SWITCH]).args((0..MACHINES).map(|machine| format!("port{machine}")));
        let mut bad = Live::start(command);
        bad.wait_until_says("switching");
        network.bad = Some(bad);
        network
    }

    /// Machines whose cables end in ports that nothing joins.
    fn wired() -> Self {
        assert!(rustix::process::getuid().is_root(), "only root may join several machines: run this as root");
        let network = Self { machines: (0..MACHINES).map(|_| hold()).collect(), switch: hold(), bad: None };
        for (number, machine) in network.machines.iter().enumerate() {
            let (id, last) = (machine.id(), number + 1);
            let peer = format!("peer name eth address 02:00:00:00:00:0{last} netns {id}");
            ip(&network.switch, &format!("link add port{number} type veth {peer}"));
            ip(&network.switch, &format!("link set port{number} up"));
            ip(machine, "link set lo up");
            ip(machine, &format!("addr add {}/24 dev eth", address(number)));
            ip(machine, "link set eth up");
        }
        network
    }

    /// A program that will run on a machine.
    pub fn command(&self, machine: usize, program: &str) -> Command {
        inside(&self.machines[machine], program)
    }

    /// From now on nothing comes from this machine and nothing gets there; nobody is told.
    pub fn pull(&self, machine: usize) {
        ip(&self.switch, &format!("link set port{machine} down"));
    }

    /// Plugs its cable in again.
    pub fn plug(&self, machine: usize) {
        ip(&self.switch, &format!("link set port{machine} up"));
    }

    /// Asserts that the bad switch has delayed frames, let some overtake and passed some twice.
    pub fn assert_was_bad(self) {
        let run = self.bad.expect("a bad switch").finish();
        assert_eq!(run.code, Some(0), "{run:?}");
        let said = run.stderr.lines().last().unwrap();
        let counts: Vec<u64> = said.split(' ').filter_map(|word| word.parse().ok()).collect();
        assert!(counts.len() == 3 && counts[1] > 20 && counts[2] > 5, "{said}");
        assert!(counts[0] > counts[1], "{said}");
    }
}

/// A machine's address on the switch.
pub fn address(machine: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, machine as u8 + 1)
}
