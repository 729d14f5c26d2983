//! The machine's network cards and the interfaces that they serve.
//!
//! A card serves one interface or is idle: because the machine has it from the start for one that
//! may come, or because its interface has gone.

use std::fs::File;
use std::io;

use super::found::{Found, Link, Mac};
use super::tap::{Purpose, Tap};
use super::{NetCard, Network, NetworkError, answers, redirect};

/// How many cards a machine can have from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// At the most.
    pub most: usize,
    /// Idle ones, for an engine that fills a namespace only later, in a machine that no card can be
    /// added to then.
    pub idle: usize,
}

/// A card.
#[derive(Debug)]
pub struct Card {
    tap: Tap,
    mac: Mac,
    serves: Option<Served>,
}

#[derive(Debug)]
struct Served {
    index: u32,
    name: String,
    mtu: u32,
}

impl Network {
    /// Gives every interface a card, for a machine that is about to start.
    pub fn first_cards(&mut self, found: &Found, room: Room) -> Result<Vec<NetCard>, NetworkError> {
        if found.links.len() > room.most {
            return Err(NetworkError::Room {
                room: room.most,
                found: found.links.len(),
            });
        }
        let mut cards = Vec::new();
        for link in &found.links {
            cards.push(self.add_card(link)?);
        }
        if self.is_new && found.links.is_empty() {
            for _ in 0..room.idle {
                cards.push(self.add_idle_card()?);
            }
        }
        Ok(cards)
    }

    /// The card that serves an interface.
    pub fn card_of(&self, index: u32) -> Option<Mac> {
        let serves = |card: &&Card| card.serves.as_ref().is_some_and(|of| of.index == index);
        self.cards.iter().find(serves).map(|card| card.mac)
    }

    /// The interfaces that no card serves.
    pub fn unserved<'found>(&self, found: &'found Found) -> Vec<&'found Link> {
        let unserved = |link: &&Link| self.card_of(link.index).is_none();
        found.links.iter().filter(unserved).collect()
    }

    /// The cards that serve nothing.
    pub fn idle_cards(&self) -> Vec<Mac> {
        let idle = self.cards.iter().filter(|card| card.serves.is_none());
        idle.map(|card| card.mac).collect()
    }

    /// Makes a card for an interface; the machine has yet to take it.
    pub fn add_card(&mut self, link: &Link) -> Result<NetCard, NetworkError> {
        let (tap, file) = self
            .create_tap(Purpose::Link(link.index))
            .map_err(|error| refused(link, "make a TAP")(error))?;
        let mac = self.mac_for(link);
        self.cards.push(Card {
            tap,
            mac,
            serves: None,
        });
        let last = self.cards.len() - 1;
        if let Err(error) = self.connect(last, link) {
            self.cards.truncate(last);
            return Err(error);
        }
        Ok(NetCard { tap: file, mac })
    }

    /// Gives an idle card to an interface. False if there is none.
    pub fn reuse_card(&mut self, link: &Link) -> Result<bool, NetworkError> {
        let Some(idle) = self.cards.iter().position(|card| card.serves.is_none()) else {
            return Ok(false);
        };
        self.cards[idle]
            .tap
            .give_to(&mut self.netlink, Purpose::Link(link.index))
            .map_err(|error| refused(link, "name the TAP")(error))?;
        self.connect(idle, link).map(|()| true)
    }

    /// Lets go of interfaces that are not there any more, and follows those that changed.
    pub fn follow(&mut self, found: &Found) -> Result<(), NetworkError> {
        for position in 0..self.cards.len() {
            let Some(served) = &self.cards[position].serves else {
                continue;
            };
            match found.links.iter().find(|link| link.index == served.index) {
                None => self.release(position)?,
                Some(link) if link.mtu != served.mtu => {
                    let card = &mut self.cards[position];
                    card.tap
                        .resize(&mut self.netlink, link.mtu)
                        .map_err(|error| refused(link, "resize the TAP")(error))?;
                    card.serves = Some(Served::from(link));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Forgets a card that the machine has given back, or not taken.
    pub fn remove_card(&mut self, mac: Mac) {
        if let Some(position) = self.cards.iter().position(|card| card.mac == mac) {
            let card = self.cards.remove(position);
            if let Some(served) = card.serves {
                self.disconnect(&served);
            }
        }
    }

    fn add_idle_card(&mut self) -> Result<NetCard, NetworkError> {
        let (tap, tap_file) = self.create_idle_tap().map_err(super::failed("set up"))?;
        let mac = self.unused_mac();
        self.cards.push(Card {
            tap,
            mac,
            serves: None,
        });
        Ok(NetCard { tap: tap_file, mac })
    }

    fn create_tap(&self, purpose: Purpose) -> io::Result<(Tap, File)> {
        self.namespace.within(|| Tap::create(purpose))?
    }

    /// Other sandboxes may have idle cards in the same namespace.
    fn create_idle_tap(&self) -> io::Result<(Tap, File)> {
        const ATTEMPTS: u32 = 1000;
        for number in 0..ATTEMPTS {
            match self.create_tap(Purpose::Idle(number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other,
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The interface's own address, which then stays when a guest looks for the card's. Interfaces
    /// on top of one may share theirs, cards must not.
    fn mac_for(&self, link: &Link) -> Mac {
        match self.cards.iter().any(|card| card.mac == link.mac) {
            true => self.unused_mac(),
            false => link.mac,
        }
    }

    fn unused_mac(&self) -> Mac {
        // A locally administered address.
        let made = (0..=u8::MAX).map(|number| [0x02, b'r', b'v', b'm', 0, number]);
        let mut unused = made.filter(|mac| self.cards.iter().all(|card| card.mac != *mac));
        unused.next().unwrap_or_default()
    }

    fn connect(&mut self, position: usize, link: &Link) -> Result<(), NetworkError> {
        let card = &mut self.cards[position];
        let tap = card.tap.index;
        card.tap
            .bring_up(&mut self.netlink, link.mtu)
            .map_err(|error| refused(link, "bring the TAP up")(error))?;
        for (from, to) in [(link.index, tap), (tap, link.index)] {
            redirect::start(&mut self.netlink, from, to).map_err(|error| {
                refused(
                    link,
                    "redirect packets with tc, which needs cls_u32 and act_mirred",
                )(error)
            })?;
        }
        card.serves = Some(Served::from(link));
        if self.host_asks {
            answers::start(&mut self.netlink, link.index, tap)
                .map_err(|error| refused(link, "keep the host's answers")(error))?;
        }
        Ok(())
    }

    /// From now on the host gets the answers to what it asks name servers from within the namespace.
    /// Docker's name server for containers does so.
    pub fn let_host_ask(&mut self) -> Result<(), NetworkError> {
        if self.host_asks {
            return Ok(());
        }
        self.namespace
            .within(answers::set_ports)
            .and_then(|set| set)
            .map_err(super::failed("set up"))?;
        for card in &self.cards {
            if let Some(served) = &card.serves {
                answers::start(&mut self.netlink, served.index, card.tap.index)
                    .map_err(super::failed("set up"))?;
            }
        }
        self.host_asks = true;
        Ok(())
    }

    fn release(&mut self, position: usize) -> Result<(), NetworkError> {
        let card = &mut self.cards[position];
        let Some(served) = card.serves.take() else {
            return Ok(());
        };
        tracing::info!(
            "the interface {} has left the network namespace",
            served.name
        );
        let tap = card.tap.index;
        redirect::stop(&mut self.netlink, tap)
            .and_then(|_| card.tap.take_down(&mut self.netlink))
            .map_err(super::failed("tidy up"))?;
        // For as long as the card is idle; the name must not stand for an interface of that index
        // that comes later.
        for number in 0..=u8::MAX.into() {
            match card.tap.give_to(&mut self.netlink, Purpose::Idle(number)) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                other => return other.map_err(super::failed("tidy up")),
            }
        }
        Ok(())
    }

    fn disconnect(&mut self, served: &Served) {
        if let Err(error) = redirect::remove(&mut self.netlink, served.index) {
            tracing::warn!("cannot disconnect the interface {}: {error}", served.name);
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for card in std::mem::take(&mut self.cards) {
            if let Some(served) = card.serves {
                self.disconnect(&served);
            }
        }
    }
}

impl From<&Link> for Served {
    fn from(link: &Link) -> Self {
        Self {
            index: link.index,
            name: link.name.clone(),
            mtu: link.mtu,
        }
    }
}

fn refused(link: &Link, action: &'static str) -> impl FnOnce(io::Error) -> NetworkError {
    let link = link.name.clone();
    move |source| match source.kind() {
        io::ErrorKind::AlreadyExists => NetworkError::Taken(link),
        _ => NetworkError::Connect {
            link,
            action,
            source,
        },
    }
}
