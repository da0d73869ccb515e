//! Names of the interfaces that captured frames.
//!
//! A pcapng section describes its interfaces, and a live capture has the name that it was opened with. Each frame of a
//! cooked capture (`LINUX_SLL2`, as of the interface `any`) holds the number of its interface on the machine that captured
//! it. If that is this machine, the system knows the interface's name.

use crate::decode::LinkType;
use crate::decode::link::interface_number;
use dataflows::layers::Text;
use rustix::net::netdevice::index_to_name;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use std::os::fd::OwnedFd;

/// Interfaces that are remembered. No machine has more in one capture; invented numbers must not fill the memory.
const MAX_NUMBERS: usize = 4096;

/// Names the interfaces of frames.
#[derive(Debug, Default)]
pub struct Interfaces {
    /// What the system is asked through; `None` where frames may come from other machines.
    system: Option<OwnedFd>,
    /// By number.
    known: Vec<Known>,
    /// Which of them was asked for last.
    last: usize,
}

#[derive(Debug)]
struct Known {
    number: u32,
    name: Text,
    /// Interfaces are renamed, so the system is asked again now and then.
    is_stale: bool,
}

impl Interfaces {
    /// Those of capture files: numbers stay numbers.
    pub fn of_files() -> Self {
        Self::default()
    }

    /// Those of this machine.
    pub fn of_this_machine() -> Self {
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
        Self { system: socket.ok(), ..Self::default() }
    }

    /// Has the system asked again for each name, once it is needed: called before each chunk of frames.
    pub fn refresh(&mut self) {
        if self.system.is_some() {
            self.known.iter_mut().for_each(|known| known.is_stale = true);
        }
    }

    /// Name, else number, of the interface that captured a frame; empty where neither is known. `capture` is what the
    /// capture says; of a cooked frame of this machine, what its link header says is closer.
    #[inline(always)]
    pub fn name(&mut self, capture: Text, link: LinkType, frame: &[u8]) -> Text {
        match interface_number(link, frame) {
            Some(number) if self.system.is_some() || capture == Text::default() => self.by_number(number),
            _ => capture,
        }
    }

    #[inline(always)]
    fn by_number(&mut self, number: u32) -> Text {
        match self.known.get(self.last) {
            Some(known) if known.number == number && !known.is_stale => known.name,
            _ => self.look_up(number),
        }
    }

    #[inline(never)]
    fn look_up(&mut self, number: u32) -> Text {
        let found = self.known.binary_search_by_key(&number, |known| known.number);
        if let Ok(at) = found
            && !self.known[at].is_stale
        {
            self.last = at;
            return self.known[at].name;
        }
        let named = self.system.as_ref().and_then(|socket| index_to_name(socket, number).ok());
        let named = named.map(|name| Text::new(&name));
        match found {
            Ok(at) => {
                let known = &mut self.known[at];
                // One that is gone keeps the name that it had.
                known.name = named.unwrap_or(known.name);
                known.is_stale = false;
                self.last = at;
                known.name
            }
            Err(at) => {
                let name = named.unwrap_or_else(|| Text::new(&number.to_string()));
                if self.known.len() == MAX_NUMBERS {
                    self.known.clear();
                }
                self.last = at.min(self.known.len());
                self.known.insert(self.last, Known { number, name, is_stale: false });
                name
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::netdevice::name_to_index;

    fn cooked(number: u32) -> Vec<u8> {
        [&[8, 0, 0, 0][..], &number.to_be_bytes(), &[0; 12]].concat()
    }

    #[test]
    fn an_interface_of_this_machine_has_its_name_and_an_unknown_one_its_number() {
        let mut here = Interfaces::of_this_machine();
        let socket = here.system.as_ref().expect("a socket");
        let loopback = name_to_index(socket, "lo").expect("a loopback interface");
        let (any, sll2) = (Text::new("any"), LinkType::LINUX_SLL2);
        for _ in 0..2 {
            assert_eq!(here.name(any, sll2, &cooked(loopback)).text(), "lo");
            assert_eq!(here.name(any, sll2, &cooked(0x7fff_0000)).text(), "2147418112");
            assert_eq!(here.name(any, LinkType::ETHERNET, &cooked(loopback)), any);
            assert_eq!(here.name(any, sll2, &[]), any, "a header that is cut off");
            here.refresh();
        }
    }

    #[test]
    fn in_a_file_the_name_that_it_has_counts_and_else_the_number() {
        let mut file = Interfaces::of_files();
        let (none, sll2) = (Text::default(), LinkType::LINUX_SLL2);
        assert_eq!(file.name(Text::new("eth7"), sll2, &cooked(1)).text(), "eth7");
        assert_eq!(file.name(none, sll2, &cooked(1)).text(), "1");
        assert_eq!(file.name(none, LinkType::ETHERNET, &cooked(1)), none);
        for number in (0..2 * MAX_NUMBERS as u32).rev() {
            assert_eq!(file.name(none, sll2, &cooked(number)).text(), number.to_string());
        }
        assert!(file.known.len() <= MAX_NUMBERS && file.known.is_sorted_by_key(|known| known.number));
    }
}
