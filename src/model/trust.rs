use super::Trust;

/// What becomes of an event whose device is trusted so far and no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// It is delivered.
    Deliver,
    /// It is delivered with `encryption.flagged`.
    Flag,
    /// It stays on the ledger as `untrusted_sender`.
    Hold,
}

impl Action {
    /// The action of that name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "deliver" => Some(Self::Deliver),
            "flag" => Some(Self::Flag),
            "hold" => Some(Self::Hold),
            _ => None,
        }
    }
}

/// What is done for each value of [`Trust`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustPolicy {
    /// Of the room's own bridge.
    pub bridge: Action,
    /// Of a verified identity.
    pub verified: Action,
    /// Of a device that its owner signed.
    pub cross_signed: Action,
    /// Of a device that its owner did not sign.
    pub unverified: Action,
    /// Of somebody who is neither the sender nor the sender's bridge.
    pub mismatched_sender: Action,
    /// Of a device that is not known.
    pub unknown_device: Action,
    /// Of nobody knows whom.
    pub imported: Action,
}

impl Default for TrustPolicy {
    fn default() -> Self {
        Self {
            bridge: Action::Deliver,
            verified: Action::Deliver,
            cross_signed: Action::Deliver,
            unverified: Action::Deliver,
            mismatched_sender: Action::Hold,
            unknown_device: Action::Flag,
            imported: Action::Flag,
        }
    }
}

impl TrustPolicy {
    /// What is done with an event of that trust.
    #[must_use]
    pub fn action(&self, trust: Trust) -> Action {
        match trust {
            Trust::Bridge => self.bridge,
            Trust::Verified => self.verified,
            Trust::CrossSigned => self.cross_signed,
            Trust::Unverified => self.unverified,
            Trust::MismatchedSender => self.mismatched_sender,
            Trust::UnknownDevice => self.unknown_device,
            Trust::Imported => self.imported,
        }
    }
}
