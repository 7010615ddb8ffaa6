//! The body of a response on its way into another coding.

use std::sync::Arc;

use bytes::Bytes;

use crate::{
    compress::{Broken, Encoder},
    telemetry::metrics::RouteMetrics,
    wire::{Downstream, Frame, Side},
};

/// Encodes what is passed on, and counts what that saves.
pub struct Packer {
    encoder: Encoder,
    /// Something was encoded that the client can not decode yet.
    pending: bool,
    metrics: Arc<RouteMetrics>,
}

impl Packer {
    /// Encodes with this, and counts there.
    pub fn new(encoder: Encoder, metrics: Arc<RouteMetrics>) -> Self {
        Packer { encoder, pending: false, metrics }
    }

    /// Encodes the next piece and sends what comes of it.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn data(&mut self, data: &[u8], client: &mut Downstream<'_>) -> Result<(), Broken> {
        let mut out = Vec::new();
        self.encoder.feed(data, &mut out, false)?;
        self.pending = true;
        self.metrics.compressed_in.add(data.len() as u64);
        self.send(out, client);
        Ok(())
    }

    /// The client gets all that there is.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn flush(&mut self, client: &mut Downstream<'_>) -> Result<(), Broken> {
        if std::mem::take(&mut self.pending) {
            let mut out = Vec::new();
            self.encoder.feed(&[], &mut out, true)?;
            self.send(out, client);
        }
        Ok(())
    }

    /// Ends the coding; the end of the body is for the caller to send.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn end(self, client: &mut Downstream<'_>) -> Result<(), Broken> {
        let mut out = Vec::new();
        self.encoder.finish(&mut out)?;
        self.metrics.compressed_out.add(out.len() as u64);
        if !out.is_empty() {
            client.send(Frame::Data(Bytes::from(out)));
        }
        Ok(())
    }

    /// The last event of a stream that broke off: on HTTP/2 the coding ends with it, on HTTP/1.1 it is as incomplete as the
    /// stream.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn last_words(mut self, event: &[u8], client: &mut Downstream<'_>) -> Result<(), Broken> {
        self.data(event, client)?;
        match client {
            Downstream::H1(_) => self.flush(client),
            Downstream::H2(_) | Downstream::Own(_) => self.end(client),
        }
    }

    fn send(&self, out: Vec<u8>, client: &mut Downstream<'_>) {
        self.metrics.compressed_out.add(out.len() as u64);
        if !out.is_empty() {
            client.send(Frame::Data(Bytes::from(out)));
        }
    }
}
