//! Asking the kernel about the sockets of the own network namespace. Needs no privilege.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

use super::diag::{self, AF_INET, AF_INET6, Dump, Refusal, Socket};

/// The kernel answers at once; one that does not must not hold the thread.
const PATIENCE_SECONDS: i64 = 1;

/// The most that the kernel puts into one datagram of a dump is half of this.
const DATAGRAM: usize = 64 * 1024;

/// A line to the kernel.
pub(super) struct Line {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Line {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has no such thing, or a filter of system calls is in the way.
    pub(super) fn open() -> io::Result<Self> {
        let kind = (SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkSockDiag);
        let socket = socket(AddressFamily::Netlink, kind.0, kind.1, kind.2)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE_SECONDS))?;
        Ok(Line { socket, sequence: 0, buffer: vec![0; DATAGRAM] })
    }

    /// The listeners and connections that have one of these ports at either end.
    ///
    /// # Errors
    /// The kernel refuses, or says nothing.
    pub(super) fn sockets(&mut self, ports: &[u16]) -> io::Result<Vec<Socket>> {
        let mut found = Vec::new();
        self.dump(AF_INET, ports, &mut found)?;
        match self.dump(AF_INET6, ports, &mut found) {
            // A kernel without IPv6.
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => {}
            other => other?,
        }
        Ok(found)
    }

    fn dump(&mut self, family: u8, ports: &[u16], found: &mut Vec<Socket>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let descriptor = self.socket.as_raw_fd();
        send(descriptor, &diag::request(family, self.sequence, ports), MsgFlags::empty())?;
        loop {
            let length = recv(descriptor, &mut self.buffer, MsgFlags::empty())?;
            let answer = self.buffer.get(..length).unwrap_or_default();
            match diag::read(answer, self.sequence, &mut |socket| found.push(socket)) {
                Ok(Dump::More) if length > 0 => {}
                Ok(_) => return Ok(()),
                Err(Refusal::Errno(number)) => return Err(io::Error::from_raw_os_error(number)),
                Err(Refusal::Garbled) => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
    }
}
