CREATE TABLE opportunities (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL REFERENCES accounts,
    title      text NOT NULL CONSTRAINT title_is_given CHECK (length(btrim(title)) BETWEEN 1 AND 200),
    amount     numeric(14, 2) NOT NULL DEFAULT 0 CONSTRAINT amount_is_not_negative CHECK (amount >= 0),
    currency   text NOT NULL DEFAULT 'KRW' CONSTRAINT currency_is_iso_4217 CHECK (currency ~ '^[A-Z]{3}$'),
    stage      text NOT NULL DEFAULT 'open' CONSTRAINT stage_is_open_won_or_lost CHECK (stage IN ('open', 'won', 'lost')),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX opportunities_account ON opportunities (account_id);
