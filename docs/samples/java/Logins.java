import com.zaxxer.hikari.HikariDataSource;
import com.zaxxer.hikari.util.Credentials;
import java.io.FileReader;
import java.io.IOException;
import java.sql.DriverManager;
import java.sql.SQLException;
import java.util.Properties;

/** A pool that follows the file CREDENTIAL, which `keyward agent` keeps; `load` is what the agent's health question calls. */
class Logins {
    final HikariDataSource pool = new HikariDataSource();
    private volatile Credentials inUse = Credentials.of(null, null); // the newest that was proven to work

    Logins(String url) {
        pool.setJdbcUrl(url);
        pool.setCredentialsProvider(() -> inUse); // asked for each new connection
        pool.setMaxLifetime(30_000); // the shortest there is: the end of a login that was under way while the value changed
    }

    /** A fresh login and what the service really does, undone. Only then the value is used, and old connections end when they come back. */
    void load() throws IOException, SQLException {
        var file = new Properties();
        try (var text = new FileReader(System.getenv("CREDENTIAL"))) { file.load(text); }
        var newest = Credentials.of(file.getProperty("username"), file.getProperty("password"));
        try (var trial = DriverManager.getConnection(pool.getJdbcUrl(), newest.getUsername(), newest.getPassword())) {
            trial.setAutoCommit(false);
            Billing.write(trial);
            trial.rollback();
        }
        inUse = newest;
        if (pool.isRunning()) pool.getHikariPoolMXBean().softEvictConnections();
    }
}
