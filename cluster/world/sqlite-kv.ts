// The key-value port on SQLite (node:sqlite): one table, one file, one process.
//
// journal_mode DELETE with synchronous FULL: a batch is one transaction that is on the disk when batch() returns, also
// after a power cut (SQLite documentation, "PRAGMA synchronous"). That costs four fsyncs, where a write-ahead log would
// need one; a batch of 65 records took 0.85 ms instead of 0.49 ms on a virtual disk. In exchange the one file is always
// complete: whoever copies it alone, as people do, has everything that was acked. locking_mode EXCLUSIVE keeps
// every other process out for as long as this one lives; the lock goes with the process, so there is none to clean up.

import { DatabaseSync, type StatementSync } from 'node:sqlite';
import { StorageError } from '../../proto/errors.ts';
import type { KeyValueBatch, KeyValueStore } from '../../proto/kv.ts';

/** "ASHL" in SQLite's header: what `file` shows, and what tells our file from another program's. */
const APPLICATION_ID = 0x4153484c;
/** What durability and exclusiveness rest on. synchronous 2 is FULL. */
const SETTINGS = [
  ['locking_mode', 'exclusive'],
  ['journal_mode', 'delete'],
  ['synchronous', 2],
] as const;
const SQLITE_BUSY = 5;
const SQLITE_NOTADB = 26;

export class SqliteKv implements KeyValueStore {
  readonly #database: DatabaseSync;
  readonly #get: StatementSync;
  readonly #range: StatementSync;
  readonly #put: StatementSync;
  readonly #delete: StatementSync;

  /**
   * Opens or makes the file. Throws StorageError BUSY if another process has it, UNSUPPORTED if it is not ours.
   */
  constructor(path: string) {
    this.#database = openExclusive(path);
    this.#get = this.#database.prepare('SELECT value FROM pairs WHERE key = ?');
    this.#range = this.#database.prepare(
      'SELECT key, value FROM pairs WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key',
    );
    this.#put = this.#database.prepare(
      'INSERT INTO pairs (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value',
    );
    this.#delete = this.#database.prepare('DELETE FROM pairs WHERE key = ?');
  }

  async get(key: string): Promise<string | null> {
    return this.#valueOf(key);
  }

  async range(prefix: string): Promise<{ key: string; value: string }[]> {
    return this.#range.all(prefix) as { key: string; value: string }[];
  }

  async batch(batch: KeyValueBatch): Promise<boolean> {
    this.#database.exec('BEGIN IMMEDIATE');
    try {
      if (batch.compares.some(({ key, value }) => this.#valueOf(key) !== value)) {
        this.#database.exec('ROLLBACK');
        return false;
      }
      for (const { key, value } of batch.puts) this.#put.run(key, value);
      for (const key of batch.deletes) this.#delete.run(key);
      this.#database.exec('COMMIT');
      return true;
    } catch (error) {
      if (this.#database.isTransaction) this.#database.exec('ROLLBACK');
      throw error;
    }
  }

  async close(): Promise<void> {
    this.#database.close();
  }

  #valueOf(key: string): string | null {
    const row = this.#get.get(key) as { value: string } | undefined;
    return row === undefined ? null : row.value;
  }
}

function openExclusive(path: string): DatabaseSync {
  let database: DatabaseSync | null = null;
  try {
    database = new DatabaseSync(path, { timeout: 0 });
    for (const [setting, wanted] of SETTINGS) {
      database.exec(`PRAGMA ${setting} = ${wanted}`);
      const [found] = Object.values(database.prepare(`PRAGMA ${setting}`).get()!);
      // SQLite keeps what it has, without a word, where it can't change a setting.
      if (found !== wanted)
        throw new StorageError('IO', `${path}: ${setting} is ${found}, and can't be made ${wanted}`);
    }
    database.exec('BEGIN EXCLUSIVE');
    const { application_id: kind } = database.prepare('PRAGMA application_id').get() as { application_id: number };
    const { tables } = database.prepare('SELECT count(*) AS tables FROM sqlite_schema').get() as { tables: number };
    if (kind !== APPLICATION_ID && tables > 0)
      throw new StorageError('UNSUPPORTED', `${path} is a database of another program`);
    database.exec(`PRAGMA application_id = ${APPLICATION_ID}`);
    database.exec('CREATE TABLE IF NOT EXISTS pairs (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID, STRICT');
    database.exec('COMMIT');
    return database;
  } catch (error) {
    database?.close();
    if (error instanceof StorageError) throw error;
    const { errcode, message } = error as Error & { errcode?: number };
    if (errcode === SQLITE_BUSY) throw new StorageError('BUSY', `another process has ${path} open`, error);
    if (errcode === SQLITE_NOTADB) throw new StorageError('UNSUPPORTED', `${path} is not a database of Ashlar`, error);
    throw new StorageError('IO', `can't open ${path}: ${message}`, error);
  }
}
