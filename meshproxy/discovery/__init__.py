"""Where endpoints come from: sources that publish immutable snapshots, whatever they ask (static, file, DNS)."""
