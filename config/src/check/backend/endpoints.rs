//! Where a backend is served: exactly one kind of place each, none twice, none that leads back to us.

use crate::check::{Checker, is_own, text};
use crate::read::tree::Node;
use crate::schema::{self, EndpointEntry};
use crate::validated::{Endpoint, Listener, Place};

impl Checker<'_> {
    pub(super) fn endpoints(
        &mut self,
        node: &Node,
        backend: &schema::Backend,
        listeners: &[Listener],
    ) -> Vec<Endpoint> {
        if backend.endpoints.is_empty() {
            self.wrong(node, "no endpoints: at least one is needed", None);
        }
        self.places(node, &backend.endpoints, listeners)
    }

    /// The endpoints of a file of their own, which does not lead to others.
    pub(in crate::check) fn addresses(
        &mut self,
        node: &Node,
        entries: &[EndpointEntry],
    ) -> Vec<Endpoint> {
        let endpoints = self.places(node, entries, &[]);
        let items = self.document.items(node, entries.len());
        for (item, entry) in items.into_iter().zip(entries) {
            if entry.0.srv.is_some() || entry.0.file.is_some() {
                self.wrong(item, "is no address: nothing else is read here", None);
            }
        }
        endpoints
    }

    fn places(
        &mut self,
        node: &Node,
        entries: &[EndpointEntry],
        listeners: &[Listener],
    ) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        let items = self.document.items(node, entries.len());
        for (item, entry) in items.into_iter().zip(entries) {
            let Some(endpoint) = self.endpoint(item, entry) else { continue };
            self.place(item.at(key(&endpoint.place)), &endpoint, &endpoints, listeners);
            endpoints.push(endpoint);
        }
        endpoints
    }

    fn endpoint(&mut self, node: &Node, entry: &EndpointEntry) -> Option<Endpoint> {
        let entry = &entry.0;
        let zone = entry.zone.as_ref();
        let zone = zone.and_then(|zone| self.zone(node.at("zone"), zone));
        let place = match (&entry.address, &entry.srv, &entry.file) {
            (Some(address), None, None) => {
                let read = text::endpoint(address);
                self.text(node.at("address"), read).map(|(host, port)| Place::Host { host, port })
            }
            (None, Some(name), None) => self.text(node.at("srv"), text::srv(name)).map(Place::Srv),
            (None, None, Some(path)) => {
                if path.as_os_str().is_empty() {
                    self.wrong(node.at("file"), "is empty", None);
                }
                Some(Place::File(path.clone()))
            }
            _ => {
                self.wrong(node, "needs exactly one of `address`, `srv` and `file`", None);
                None
            }
        }?;
        self.only_with_address(node, &place);
        Some(Endpoint { place, weight: entry.weight.0, zone, local: entry.local })
    }

    fn only_with_address(&mut self, node: &Node, place: &Place) {
        if matches!(place, Place::Host { .. }) {
            return;
        }
        for written in ["weight", "local"].into_iter().filter_map(|key| node.get(key)) {
            let message = format!("means nothing with `{}`, only with `address`", key(place));
            self.wrong_key(written, message, None);
        }
    }

    /// Looks at a place beside all the others.
    fn place(
        &mut self,
        node: &Node,
        endpoint: &Endpoint,
        earlier: &[Endpoint],
        listeners: &[Listener],
    ) {
        if earlier.iter().any(|other| other.place == endpoint.place) {
            let weighted = matches!(endpoint.place, Place::Host { .. });
            let help = weighted.then(|| "give it a weight instead".to_owned());
            self.wrong(node, format!("{endpoint} is listed twice"), help);
        }
        if let Some(listener) = listeners.iter().find(|own| is_own(own.address, endpoint)) {
            let message = format!("{endpoint} leads back to the listener {}", listener.address);
            self.wrong(node, message, None);
        }
    }

    /// The name of a zone.
    pub(super) fn zone(&mut self, node: &Node, zone: &str) -> Option<String> {
        self.text(node, text::name(zone, "-_.")).map(|()| zone.to_owned())
    }
}

/// The key that a place is written with.
fn key(place: &Place) -> &'static str {
    match place {
        Place::Host { .. } => "address",
        Place::Srv(_) => "srv",
        Place::File(_) => "file",
    }
}
