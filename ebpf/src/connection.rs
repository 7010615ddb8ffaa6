//! One connection as the application's side of it sees it, and how bytes that come are told from bytes that answer.
//!
//! HTTP is not parsed. Bytes arrive, are read, and something is written; when more bytes arrive after something was
//! written, that is the next burst. On a connection without pipelining a burst is a request, or a part of one that was
//! answered before it had come as a whole; the proxy knows which bytes of the stream its request was, and puts the bursts
//! of those together.
//!
//! A write is seen when its system call returns, and by then the answer may have reached the proxy, the proxy's client,
//! and the next request may be here. So the border between bursts is not drawn by the writes that were seen but by the
//! sequence number of the socket, which is right at any time; a write that is seen too late is told by the same number
//! and is not counted to the wrong burst.

use crate::record::record;

record! {
    /// Bytes that arrived together, and what the application made of them. Times are nanoseconds of CLOCK_MONOTONIC, and 0
    /// is "not seen".
    Burst {
        /// Which connection, as it was registered.
        connection,
        /// How many bytes of the connection came before.
        offset,
        /// When the first segment reached the socket.
        arrived,
        /// When the application had read first.
        picked,
        /// When it had read last.
        read,
        /// When it had written first.
        first_write,
        /// When it had written last.
        last_write,
        /// Bytes read.
        bytes_in,
        /// Bytes written.
        bytes_out,
        /// How often something was written.
        writes,
        /// The longest that two writes in a row were apart, in nanoseconds.
        longest_gap,
        /// Who read first: the process in the upper half, the thread in the lower, as the PID namespace of the proxy
        /// counts; where it does not have them, as the first one does.
        task,
        /// [`Burst::LATE`].
        flags,
    }
}

record! {
    /// A write of an answer that was not its first.
    Write {
        /// [`Burst::connection`].
        connection,
        /// [`Burst::offset`].
        offset,
        /// When it was seen, in nanoseconds of CLOCK_MONOTONIC.
        at,
        /// How many bytes were written.
        bytes,
    }
}

record! {
    /// A connection that is followed: the burst under way, as words, and what is needed to find its end. One entry of a map.
    Connection {
        /// [`Burst::connection`].
        connection,
        /// [`Burst::offset`].
        offset,
        /// [`Burst::arrived`].
        arrived,
        /// [`Burst::picked`].
        picked,
        /// [`Burst::read`].
        read,
        /// [`Burst::first_write`].
        first_write,
        /// [`Burst::last_write`].
        last_write,
        /// [`Burst::bytes_in`].
        bytes_in,
        /// [`Burst::bytes_out`].
        bytes_out,
        /// [`Burst::writes`].
        writes,
        /// [`Burst::longest_gap`].
        longest_gap,
        /// [`Burst::task`].
        task,
        /// [`Burst::flags`].
        flags,
        /// The socket's write sequence number when the burst began, of 32 bits.
        sequence,
        /// Bytes read of all bursts.
        consumed,
        /// Which endpoint it leads to, as user space numbers them.
        endpoint,
    }
}

impl Burst {
    /// The last write was not seen before the next burst came; its time is that of the next arrival, which is later.
    pub const LATE: u64 = 1;

    /// The process that read first.
    #[must_use]
    pub const fn process(&self) -> u32 {
        (self.task >> 32) as u32
    }

    /// The thread that read first.
    #[must_use]
    pub const fn thread(&self) -> u32 {
        self.task as u32
    }
}

impl Connection {
    /// A connection to an endpoint on which nothing has come yet.
    #[must_use]
    pub const fn new(connection: u64, endpoint: u64) -> Self {
        let mut words = [0; Self::WORDS];
        words[0] = connection;
        words[Self::WORDS - 1] = endpoint;
        Self::from_words(words)
    }

    /// The burst under way, or the last one.
    #[must_use]
    pub const fn burst(&self) -> Burst {
        Burst {
            connection: self.connection,
            offset: self.offset,
            arrived: self.arrived,
            picked: self.picked,
            read: self.read,
            first_write: self.first_write,
            last_write: self.last_write,
            bytes_in: self.bytes_in,
            bytes_out: self.bytes_out,
            writes: self.writes,
            longest_gap: self.longest_gap,
            task: self.task,
            flags: self.flags,
        }
    }

    /// The write that was seen last, of so many bytes.
    #[must_use]
    #[inline(always)]
    pub const fn write(&self, bytes: u64) -> Write {
        Write { connection: self.connection, offset: self.offset, at: self.last_write, bytes }
    }

    /// Whether anything has come.
    #[must_use]
    pub const fn has_begun(&self) -> bool {
        self.arrived | self.picked != 0
    }

    /// A segment with data has reached the socket, after `offset` bytes, when the socket's write sequence number was
    /// `sequence`. Returns the burst before when it has ended by this.
    #[inline(always)]
    pub fn arrives(&mut self, now: u64, offset: u64, sequence: u32) -> Option<Burst> {
        if !self.has_begun() {
            self.begin(now, offset, sequence);
            return None;
        }
        let written = sequence.wrapping_sub(self.sequence as u32) as u64;
        if written == 0 {
            return None;
        }
        if self.bytes_out < written {
            self.bytes_out = written;
            self.last_write = now;
            self.flags |= Burst::LATE;
            if self.first_write == 0 {
                self.first_write = now;
            }
        }
        let ended = self.burst();
        self.begin(now, offset, sequence);
        Some(ended)
    }

    #[inline(always)]
    fn begin(&mut self, now: u64, offset: u64, sequence: u32) {
        // A compiler that knew what it is would call a function that clears byte by byte, which in the kernel takes longer
        // than all the rest.
        let unseen = core::hint::black_box(0);
        self.offset = offset;
        self.arrived = now;
        self.picked = unseen;
        self.read = unseen;
        self.first_write = unseen;
        self.last_write = unseen;
        self.bytes_in = unseen;
        self.bytes_out = unseen;
        self.writes = unseen;
        self.longest_gap = unseen;
        self.task = unseen;
        self.flags = unseen;
        self.sequence = sequence as u64;
    }

    /// `task` has read `bytes`, when the socket's write sequence number was `sequence`.
    #[inline(always)]
    pub fn is_read(&mut self, now: u64, bytes: u64, task: u64, sequence: u32) {
        if !self.has_begun() {
            // It came with the handshake, which is not seen.
            self.begin(0, self.consumed, sequence);
        }
        if self.picked == 0 {
            self.picked = now;
            self.task = task;
        }
        self.read = now;
        self.bytes_in = self.bytes_in.wrapping_add(bytes);
        self.consumed = self.consumed.wrapping_add(bytes);
    }

    /// `bytes` have been written, and the socket's write sequence number is `sequence` now. Returns how long after the write
    /// before it, in nanoseconds, when there was one.
    #[inline(always)]
    pub fn is_written(&mut self, now: u64, bytes: u64, sequence: u32) -> Option<u64> {
        // Nothing was written since the burst began: this is of the burst before, seen late.
        if !self.has_begun() || sequence == self.sequence as u32 {
            return None;
        }
        let gap = if self.first_write == 0 {
            self.first_write = now;
            None
        } else {
            // Two threads may write at the same time, and the clocks of processors differ by nanoseconds.
            let gap = now.saturating_sub(self.last_write);
            self.longest_gap = self.longest_gap.max(gap);
            Some(gap)
        };
        self.last_write = now;
        self.writes = self.writes.wrapping_add(1);
        self.bytes_out = self.bytes_out.wrapping_add(bytes);
        gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TASK: u64 = (7 << 32) | 9;

    fn answered(connection: &mut Connection, at: u64, offset: u64, sequence: u32) {
        connection.arrives(at, offset, sequence);
        connection.is_read(at + 1, 10, TASK, sequence);
        connection.is_written(at + 2, 30, sequence.wrapping_add(30));
    }

    #[test]
    fn records_come_back_as_they_went() {
        let words: [u64; Connection::WORDS] = core::array::from_fn(|at| at as u64 + 100);
        let connection = Connection::from_words(words);
        assert_eq!(connection.to_words(), words);
        assert_eq!((connection.connection, connection.endpoint), (100, 115));
        assert_eq!(Connection::new(5, 7).endpoint, 7);
        let burst = connection.burst();
        assert_eq!(burst.to_words(), words[..Burst::WORDS]);
        let mut bytes = [0; 8 * Burst::WORDS];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
        assert_eq!(Burst::from_bytes(&bytes), Some(burst));
        assert_eq!(Burst::from_bytes(&bytes[1..]), None);
        assert_eq!(size_of::<Burst>(), bytes.len());
        assert_eq!(size_of::<Connection>(), 8 * Connection::WORDS);
    }

    #[test]
    fn a_request_is_a_burst_that_ends_with_the_next_one() {
        let mut connection = Connection::new(5, 0);
        answered(&mut connection, 1000, 0, 1);
        let burst = connection.arrives(2000, 10, 31).expect("the first one has ended");
        let expected = Burst {
            connection: 5,
            offset: 0,
            arrived: 1000,
            picked: 1001,
            read: 1001,
            first_write: 1002,
            last_write: 1002,
            bytes_in: 10,
            bytes_out: 30,
            writes: 1,
            longest_gap: 0,
            task: TASK,
            flags: 0,
        };
        assert_eq!(burst, expected);
        assert_eq!((burst.process(), burst.thread()), (7, 9));
        assert_eq!((connection.offset, connection.arrived, connection.picked), (10, 2000, 0));
    }

    #[test]
    fn segments_of_one_request_are_one_burst() {
        let mut connection = Connection::new(5, 0);
        assert_eq!(connection.arrives(10, 0, 1), None);
        connection.is_read(12, 100, TASK, 1);
        assert_eq!(connection.arrives(20, 100, 1), None);
        connection.is_read(22, 50, 1, 1);
        let burst = connection.burst();
        assert_eq!((burst.arrived, burst.picked, burst.read, burst.bytes_in), (10, 12, 22, 150));
        assert_eq!(burst.task, TASK, "who read first");
    }

    #[test]
    fn a_write_that_is_seen_late_is_not_the_next_requests() {
        let mut connection = Connection::new(5, 0);
        connection.arrives(1000, 0, 1);
        connection.is_read(1001, 10, TASK, 1);
        // Written, read by the proxy and answered before the write was seen.
        let burst = connection.arrives(2000, 10, 31).expect("the first one has ended");
        assert_eq!((burst.first_write, burst.last_write, burst.bytes_out), (2000, 2000, 30));
        assert_eq!(burst.flags, Burst::LATE);
        assert_eq!(connection.is_written(2001, 30, 31), None);
        assert_eq!((connection.first_write, connection.bytes_out), (0, 0));
        connection.is_written(2009, 5, 36);
        assert_eq!((connection.first_write, connection.bytes_out), (2009, 5));
    }

    #[test]
    fn the_last_of_several_writes_may_be_late_too() {
        let mut connection = Connection::new(5, 0);
        answered(&mut connection, 1000, 0, u32::MAX - 20);
        // 30 more bytes than were seen; the sequence number has begun anew meanwhile.
        let burst = connection.arrives(2000, 10, 39).expect("ended");
        assert_eq!((burst.first_write, burst.last_write, burst.bytes_out), (1002, 2000, 60));
        assert_eq!(burst.flags, Burst::LATE);
    }

    #[test]
    fn the_longest_pause_between_writes_is_kept() {
        let mut connection = Connection::new(5, 0);
        connection.arrives(1000, 0, 1);
        connection.is_read(1001, 10, TASK, 1);
        let writes = [(1100, 11), (1150, 21), (1450, 31), (1460, 41)];
        let gaps = writes.map(|(at, sequence)| connection.is_written(at, 10, sequence));
        assert_eq!(gaps, [None, Some(50), Some(300), Some(10)]);
        let burst = connection.burst();
        assert_eq!((burst.writes, burst.longest_gap, burst.bytes_out), (4, 300, 40));
        let last = Write { connection: 5, offset: 0, at: 1460, bytes: 10 };
        assert_eq!(connection.write(10), last);
    }

    #[test]
    fn what_came_with_the_handshake_is_known_from_its_reading() {
        let mut connection = Connection::new(5, 0);
        connection.is_read(1001, 10, TASK, 1);
        connection.is_written(1002, 30, 31);
        let burst = connection.arrives(2000, 10, 31).expect("ended");
        assert_eq!((burst.offset, burst.arrived, burst.picked), (0, 0, 1001));
    }

    #[test]
    fn a_write_before_anything_came_is_nobodys() {
        let mut connection = Connection::new(5, 0);
        connection.is_written(10, 30, 31);
        assert!(!connection.has_begun());
        assert_eq!(connection.burst(), Connection::new(5, 0).burst());
    }
}
