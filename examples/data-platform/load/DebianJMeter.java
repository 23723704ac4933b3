import com.thoughtworks.xstream.XStream;
import java.lang.reflect.Field;
import org.apache.jmeter.JMeter;
import org.apache.jmeter.util.JMeterUtils;

/**
 * Starts Debian's JMeter with the settings that it needs to read a test plan.
 *
 * <p>Debian 12 has JMeter 2.13. Its XStream refuses every class that is not permitted, and JMeter permits none: every
 * plan fails with {@code ForbiddenClassException}. This starter permits the classes of JMeter only. JMeter 3 and later
 * do not need it.
 */
public final class DebianJMeter {
  private static final String HOME = "/usr/share/jmeter";
  private static final String[] JMETER_CLASSES = {"org.apache.jmeter.**", "org.apache.jorphan.**", "java.**"};

  public static void main(String[] arguments) throws ReflectiveOperationException {
    System.setProperty("jmeter.home", HOME);
    JMeterUtils.setJMeterHome(HOME);
    JMeterUtils.loadJMeterProperties(HOME + "/bin/jmeter.properties");
    Class<?> service = Class.forName("org.apache.jmeter.save.SaveService");
    for (String name : new String[] {"JMXSAVER", "JTLSAVER"}) {
      Field saver = service.getDeclaredField(name);
      saver.setAccessible(true);
      ((XStream) saver.get(null)).allowTypesByWildcard(JMETER_CLASSES);
    }
    new JMeter().start(arguments);
  }
}
